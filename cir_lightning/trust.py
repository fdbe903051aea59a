"""Configs that come with weights are a stranger's: which code they may name."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jsonargparse import ArgumentError, set_parsing_settings
from jsonargparse._common import parsing_settings

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "CIR_TRUST"  # packages of the user's own, with commas between
KNOWN = ["cir_lightning", "data_modules", "lightning"]
ANYTHING = "lightning.pytorch.callbacks.lambda_function"  # calls whatever function its arguments name
_DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")


@contextmanager
def known_classes() -> Iterator[None]:
    """Within it, what is parsed can name classes and functions of this project, of Lightning and of ``$CIR_TRUST`` alone.

    Others are not even imported, since that would already run code. jsonargparse's settings are global and have no way back of their
    own, and other configs of the same process may be the user's.

    Raises:
        UserError: something else is named.
    """
    before = dict(parsing_settings)
    trusted = [name for name in re.split(r"[,\s]+", os.environ.get(VARIABLE, "")) if name]
    set_parsing_settings(import_path_denylist=["*", ANYTHING], import_path_allowlist=[*KNOWN, *trusted])
    try:
        yield
    except (UserError, ArgumentError, ValueError) as error:
        if denied := _DENIED.search(_all(error)):
            raise UserError(
                f"the config that comes with the weights names {denied[1]}, which neither this project nor Lightning has; if you know and "
                f"trust it, set {VARIABLE}={denied[1].partition('.')[0]}, or give cir a config of your own with --config"
            ) from error
        raise
    finally:
        parsing_settings.update(before)


def _all(error: BaseException | None) -> str:
    """What an error and those behind it say."""
    said = []
    while error is not None:
        said.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(said)
