"""What every engine refuses before an answer begins."""

from __future__ import annotations

from collections.abc import Collection

from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.serve.jobs import Job


def check_known(names: Collection[str], specialists: Collection[str]) -> None:
    """UnknownName for the first name that is no specialist's."""
    for name in names:
        if name not in specialists:
            raise UnknownName("specialist", name, specialists)


def check_job(job: Job, specialists: Collection[str], room: int | None, under_way: Collection[str]) -> None:
    """Errors as `Engine.submit`, and SettingsError for the id of a job that is under way; room: positions, None where there is no limit."""
    if job.composition is not None:
        check_known(job.composition.mixture.specialists, specialists)
    if not job.tokens:
        raise DataError("There is nothing to answer.", met="a prompt without tokens", mend="give it some words")
    if room is not None and len(job.tokens) + job.sampling.max_tokens > room:
        met, mend = f"{len(job.tokens)} tokens + {job.sampling.max_tokens} new ones", f"ask for {room} together at most"
        raise DataError("The prompt leaves no room for its answer.", met=met, mend=mend)
    if job.id in under_way:
        raise SettingsError("An answer of that id is on its way.", met=job.id, mend="give every job an id of its own")
