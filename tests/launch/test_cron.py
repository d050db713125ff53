import pytest

from iceaggr.errors import ConfigError
from launch.cron import check_cron


@pytest.mark.parametrize(
    "cron",
    [
        "0 0 3 * * 0",
        "0 0 3 * * MON",
        "0 */15 * * * *",
        "30 5 1-5,10 ? JAN-MAR SUN",
        "0 0 0 1 1 ?",
        "5/10 * * * * 6",
        "0 0 3 29 2 *",
        "0 0 3 31 2,JAN *",
        "0 0 3 31 2 MON",
        "0 0 03 * * 6",
        "0 0 3 31 2/2 *",
        "0 0 3 30-31 FEB-APR *",
    ],
)
def test_check_cron_accepts_what_the_controller_accepts(cron):
    check_cron(cron)


@pytest.mark.parametrize(
    ("cron", "wrong"),
    [
        ("0 3 * * 0", "5 fields"),
        ("0 0 3 * * 0 2026", "7 fields"),
        ("", "0 fields"),
        ("60 0 3 * * 0", "second '60'"),
        ("0 0 24 * * 0", "hour '24'"),
        ("0 0 3 0 * 0", "day of month '0'"),
        ("0 0 3 * 13 0", "month '13'"),
        ("0 0 3 * * 7", "day of week '7'"),
        ("0 0 3 * * FOO", "day of week 'FOO'"),
        ("0 9-3 3 * * 0", "minute '9-3'"),
        ("0 */0 3 * * 0", r"minute '\*/0'"),
        ("0 ? 3 * * 0", r"minute '\?'"),
        ("0 0 -3 * * 0", "hour '-3'"),
        ("0 0 3 ² * 0", "day of month '²'"),
        ("0 */² * * * *", "minute"),
        ("0 0 3 * * " + "9" * 5000, "day of week '9"),
        ("0 */" + "9" * 5000 + " * * * *", "minute"),
        ("0 */99 * * * *", r"minute '\*/99'"),
    ],
)
def test_check_cron_names_the_field_that_is_wrong(cron, wrong):
    with pytest.raises(ConfigError, match=f"bad cron expression.*found {wrong}"):
        check_cron(cron)


@pytest.mark.parametrize(
    "cron", ["0 0 3 31 2 *", "0 0 3 30 FEB ?", "0 0 3 31 4,6,9,NOV *", "0 0 3 31 2 MON,*"]
)
def test_check_cron_refuses_a_day_that_never_comes(cron):
    with pytest.raises(ConfigError, match=r"this time never comes .*found day 3"):
        check_cron(cron)
