"""Refuse requests, and turn every error into a Problem with a fitting status."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from efface.app.serving.schemas import Problem
from efface.errors import EffaceError, InputError, UsageError


class RequestError(EffaceError):
    """A request that is refused with ``status``."""

    def __init__(self, status: int, what: str, *, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.status = status


def problem_of(error: EffaceError) -> Problem:
    """Say what an error says."""
    return Problem(what=error.what, where=error.where, fix=error.fix)


def add_handlers(app: FastAPI) -> None:
    """Answer every error of ``app`` with a Problem."""

    @app.exception_handler(EffaceError)
    def refuse(request: Request, error: EffaceError) -> JSONResponse:
        usual = 422 if isinstance(error, InputError | UsageError) else 500
        status = getattr(error, "status", usual)
        return answer(status, problem_of(error), {"Retry-After": "2"} if status == 429 else None)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return answer(422, Problem(what=first["msg"], where=".".join(map(str, first["loc"])), fix="See /openapi.json"))

    @app.exception_handler(Exception)
    def fault(request: Request, error: Exception) -> JSONResponse:
        return answer(500, Problem(what=f"unexpected {type(error).__name__}", fix="Please report this"))

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, Problem(what=str(error.detail)), error.headers)


def answer(status: int, problem: Problem, headers: object = None) -> JSONResponse:
    """Answer with ``status`` and a Problem."""
    return JSONResponse(problem.model_dump(), status, headers=headers)  # type: ignore[arg-type]
