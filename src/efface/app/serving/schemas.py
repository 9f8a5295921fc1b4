"""Say what goes over the wire, as pydantic models that the OpenAPI description is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from efface.verbs.rules import FEATHER_MOST, GROW_MOST

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="Random name that the server gave.")]
Box = tuple[
    Annotated[int, Field(ge=0, le=100_000)],
    Annotated[int, Field(ge=0, le=100_000)],
    Annotated[int, Field(ge=1, le=100_000)],
    Annotated[int, Field(ge=1, le=100_000)],
]
"""x, y, width, height in pixels of the upright picture."""
Point = tuple[float, float]
Index = Annotated[int, Field(ge=0, le=100_000)]
Pattern = Annotated[str, Field(max_length=500)]


class Closed(BaseModel):
    """A model that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid")


class Problem(Closed):
    """What went wrong, where, and what to do: the body of every answer of 400 and above."""

    what: str
    where: str | None = None
    fix: str | None = None


class About(Closed):
    """What this server is and allows."""

    version: str
    max_file_bytes: int = Field(description="Largest picture file that is taken.")
    max_total_bytes: int = Field(description="Bytes of all pictures held at a time.")
    max_pictures: int = Field(description="Pictures held at a time.")
    max_pixels: int = Field(description="Pixels of the largest picture that is taken.")
    max_name: int = Field(description="Characters of the longest file name that is taken.")
    max_waiting: int = Field(description="Jobs that may wait; one more is answered with 429.")
    workers: int
    suffixes: list[str] = Field(description="Endings of the formats that are read.")
    qualities: dict[str, str] = Field(description="The method that each quality means.")


class Picture(Closed):
    """An uploaded picture."""

    id: Id
    name: str = Field(description="The file's own name, without folders.")
    width: int
    height: int
    bytes: int
    format: str
    depth: Literal["uint8", "uint16", "float32"]
    channels: int = Field(description="1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.")
    notes: list[str] = Field(description="What of the file cannot be kept.")
    view: str = Field(description="Path of the rendition; takes `x`, `y`, `w`, `h` and `size`.")


class Text(Closed):
    """A text that was found in a picture."""

    index: int
    words: str
    confidence: float = Field(description="How sure the reading is, 0 to 1.")
    polygon: list[Point] = Field(description="Four corners, x and y in pixels, clockwise from where reading starts.")


class Mask(Closed):
    """A picture's painted mask."""

    width: int
    height: int
    masked: float = Field(description="Share of the picture that it covers, 0 to 1.")


class Rules(Closed):
    """What to take out of a picture and how; without `take`, `leave` and `mask` they fit any number of pictures.

    What is taken away is the text chosen by `min_confidence`, `only` and `keep` (none where `texts` is false), plus the
    texts of `take`, minus those of `leave`, plus `boxes`, plus the picture's painted mask; minus the boxes of `keep`.
    """

    texts: bool = Field(default=True, description="Take the text that is found.")
    min_confidence: float = Field(default=0.5, ge=0, le=1, description="Text found with less confidence stays.")
    only: Pattern | None = Field(default=None, description="Regular expression; other text stays.")
    take: list[Index] = Field(default=[], max_length=10_000, description="Indices of texts that go in any case.")
    leave: list[Index] = Field(default=[], max_length=10_000, description="Indices of texts that stay in any case.")
    boxes: list[Box] = Field(default=[], max_length=1000, description="Rectangles to take away.")
    mask: bool = Field(default=False, description="Take what the picture's painted mask covers, as it is now.")
    keep: list[Box | Pattern] = Field(
        default=[],
        max_length=1000,
        description="Rectangles in which no pixel changes, or regular expressions on the words.",
    )
    grow: int | None = Field(
        default=None, ge=0, le=GROW_MOST, description="Pixels to widen by; null: as suits found text."
    )
    feather: int = Field(
        default=2, ge=0, le=FEATHER_MOST, description="Pixels over which the result fades into the picture."
    )
    quality: Literal["fast", "default", "best"] = "default"
    method: str | None = Field(default=None, max_length=100, description="Method instead of a quality.")
    iterations: int | None = Field(default=None, ge=1, le=64, description="Refinements, for iterative methods only.")


class Words(Closed):
    """Words to choose among by patterns."""

    words: list[Annotated[str, Field(max_length=2000)]] = Field(max_length=10_000)
    only: Pattern | None = Field(default=None, description="Regular expression; other words stay.")
    keep: list[Pattern] = Field(default=[], max_length=1000, description="Regular expressions on words that stay.")


class NewJob(Closed):
    """A picture to clean by rules."""

    picture: Id
    rules: Rules = Rules()


class Residual(Closed):
    """How much of the text that was taken away a detector still finds."""

    before: int = Field(description="Texts that were to go.")
    recall: float | None = Field(description="Share of them still found, 0 to 1 (DetEval); null where there was none.")
    left: list[list[Point]] = Field(description="Outlines of what is still found where something was taken away.")


class Result(Closed):
    """What became of the picture."""

    method: str
    masked: float = Field(description="Share of the picture that was taken away.")
    flat: float = Field(description="Share of that filled exactly, without a network.")
    rim: float = Field(description="Mean change on the rim of the mask; high where the mask cuts through text.")
    seconds: float
    residual: Residual
    iterations: int = Field(description="Iterates that can be looked at, 1 to this; 0 where there are none.")
    notes: list[str]
    command: str = Field(description="The same as a command.")
    python: str = Field(description="The same in Python.")
    needs_mask: bool = Field(description="Whether the command and the Python read the mask from a file: download it.")


class Job(Closed):
    """A job, as it stands."""

    id: Id
    picture: Id
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    progress: float = Field(description="How much is done, 0 to 1.")
    doing: str = Field(description="What goes on, in words.")
    problem: Problem | None = Field(default=None, description="Why it failed.")
    result: Result | None = Field(default=None, description="There once it is done.")


class Method(Closed):
    """A method of the catalogue."""

    name: str
    subject: str
    kind: Literal["Network", "Editor", "Eraser"] = Field(description="A network of its own, or what changes a model.")
    title: str
    paper: str
    year: int
    task: str
    good_at: str
    speed: str
    weight_bytes: int | None = Field(description="Size of the weights that come along; null where none do.")
    usable: bool = Field(description="Whether jobs can use it: it takes text out of pictures and has weights.")
    iterations: int | None = Field(description="Refinements of an iterative method by default; null for others.")


class MethodPage(Method):
    """All that is known of a method."""

    doc: str
    card: dict[str, Any]
    params: list[dict[str, Any]]
    weights: dict[str, dict[str, Any]]
    result: dict[str, Any] | None = Field(description="Its claim as last measured.")
    plot: str | None = Field(description="Path of the plot of that, where there is one.")
