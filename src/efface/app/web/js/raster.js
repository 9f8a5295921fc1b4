// Paints a mask: white where something goes. Coordinates are pixels of the picture; the context scales them.

function trace(context, points) {
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
}

const painters = {
  brush(context, { points, radius }) {
    trace(context, points);
    if (points.length === 1) context.lineTo(points[0][0], points[0][1]); // a dot
    context.lineWidth = 2 * radius;
    context.stroke();
  },
  rectangle(context, { points: [[ax, ay], [bx, by]] }) {
    context.fillRect(Math.min(ax, bx), Math.min(ay, by), Math.abs(ax - bx), Math.abs(ay - by));
  },
  lasso(context, { points }) {
    trace(context, points);
    context.fill();
  },
  image(context, { file }, images) {
    context.drawImage(images.get(file), 0, 0);
  },
};

export function paint(context, { polygons, marks }, images) {
  context.lineJoin = context.lineCap = "round";
  context.fillStyle = context.strokeStyle = "#fff";
  for (const polygon of polygons) {
    trace(context, polygon);
    context.closePath();
    context.fill();
    context.lineWidth = 1; // the border belongs to the text
    context.stroke();
  }
  for (const mark of marks) {
    context.globalCompositeOperation = mark.erase ? "destination-out" : "source-over";
    painters[mark.kind](context, mark, images);
  }
  context.globalCompositeOperation = "source-over";
}
