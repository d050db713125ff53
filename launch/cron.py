"""Six-field cron expressions, as the scheduled-workflow controller of KFP reads them."""

from __future__ import annotations

import re

from iceaggr.errors import ConfigError

# Source: robfig/cron v1, the parser of the scheduled-workflow controller: seconds come first.
_CRON_RANGES = (
    ("second", 0, 59),
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 6),
)
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_NAMES = {"month": (_MONTHS, 1), "day of week": (_DAYS, 0)}
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def check_cron(cron: str) -> None:
    """Check a six-field cron expression: second minute hour day-of-month month day-of-week.

    Raises: ConfigError naming the field that is wrong, or if the time never comes.
    """
    fields = cron.split()
    if len(fields) != len(_CRON_RANGES):
        raise _bad_cron(
            cron,
            f"{len(fields)} fields",
            "6: second minute hour day-of-month month day-of-week",
        )
    for text, (name, low, high) in zip(fields, _CRON_RANGES, strict=True):
        if not all(_is_cron_part(part, name, low, high) for part in text.split(",")):
            raise _bad_cron(
                cron,
                f"{name} {text!r}",
                f"*, a number in {low}..{high}, a range a-b or a step */n",
            )
    if not _ever(fields[3], fields[4], fields[5]):
        raise ConfigError(
            "this time never comes",
            where=f"--cron {cron!r}",
            found=f"day {fields[3]} of month {fields[4]}",
            expected="a day that one of these months has",
        )


def _bad_cron(cron: str, found: str, expected: str) -> ConfigError:
    return ConfigError(
        "bad cron expression",
        where=f"--cron {cron!r}",
        found=found,
        expected=expected,
        remedy='Sundays at 03:00 are "0 0 3 * * 0", seconds first',
    )


def _ever(day_field: str, month_field: str, weekday_field: str) -> bool:
    # where both kinds of day are given, either is enough: a weekday comes in every month; one star
    # in a list makes it none that is given
    if not any(part[0] in "*?" for part in weekday_field.split(",")):
        return True
    first_days = [_first(part, "day of month") for part in day_field.split(",")]
    return any(
        min(first_days) <= _LONGEST[month - 1]
        for part in month_field.split(",")
        for month in _months(part)
    )


def _first(part: str, name: str) -> int:
    body = part.partition("/")[0].partition("-")[0]
    return 1 if body in ("*", "?") else (_cron_number(body, *_NAMES.get(name, ((), 0))) or 0)


def _months(part: str) -> range:
    body, slash, step = part.partition("/")
    first, dash, last = body.partition("-")
    begin = _first(first, "month")
    # a number with a step goes on to the end, as * does
    end = _first(last, "month") if dash else 12 if slash or body == "*" else begin
    return range(begin, end + 1, int(step) if slash else 1)


def _is_cron_part(part: str, name: str, low: int, high: int) -> bool:
    body, slash, step = part.partition("/")
    if slash and not 0 < (_cron_number(step, (), 0) or 0) <= high - low:
        return False
    if body == "*" or (body == "?" and name.startswith("day") and not slash):
        return True
    match = re.fullmatch(r"(\w+)(?:-(\w+))?", body)
    if not match:
        return False
    names = _NAMES.get(name, ((), 0))
    ends = [_cron_number(end, *names) for end in match.groups() if end is not None]
    return all(end is not None and low <= end <= high for end in ends) and ends == sorted(
        end for end in ends if end is not None
    )


def _cron_number(text: str, names: tuple[str, ...], first: int) -> int | None:
    # \d would take digits of other scripts, too; no field needs more than two
    if re.fullmatch(r"0*[0-9]{1,2}", text):
        return int(text[-2:])
    return names.index(text.upper()) + first if text.upper() in names else None
