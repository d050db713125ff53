import numpy as np
import pytest

from iceaggr.built_in_detectors import built_in_detector
from iceaggr.detector import ICE, WATER, icecube86, parse_geometry
from iceaggr.errors import DetectorError

HEADER = "sensor_id,x,y,z,string,efficiency\n"


def test_geometry_is_sorted_by_sensor_and_keeps_every_bit():
    text = HEADER + "9,0.1,1e-3,-500.125,2,1.35\n4,1,2,3,1,\n"
    detector = parse_geometry(text, "here")
    assert detector.sensor_id.tolist() == [4, 9]
    assert detector.xyz_m[1].tolist() == [0.1, 1e-3, -500.125]
    assert detector.string_id.tolist() == [1, 2]
    assert detector.in_use.tolist() == [False, True]
    assert detector.efficiency.tolist() == [1.0, 1.35]


def test_sensors_of_a_string_are_counted_from_the_top_whatever_their_ids():
    rows = "7,0,0,1,5,1\n3,0,0,9,5,1\n4,50,0,2,2,1\n5,0,0,4,5,1\n"
    detector = parse_geometry(HEADER + rows, "here")
    assert dict(zip(detector.sensor_id, detector.places_on_strings(), strict=True)) == {
        3: 0, 4: 0, 5: 1, 7: 2,
    }  # fmt: skip


def strings_at(xy_m):
    rows = "".join(f"{k},{x},{y},0,{k},1\n" for k, (x, y) in enumerate(xy_m))
    return parse_geometry(HEADER + rows, "here")


@pytest.mark.parametrize(
    ("name", "period_deg"),
    [
        ("icecube86", 60), ("hexagon", 60), ("triangle", 120),
        ("cluster", 360 / 7), ("flower-s", 360 / 7), ("flower-l", 360 / 7), ("flower-xl", 360 / 11),
    ],
)  # fmt: skip
def test_azimuth_is_periodic_as_the_strings_are(name, period_deg):
    assert built_in_detector(name).azimuth_period_deg == pytest.approx(period_deg)


def test_azimuth_has_the_period_of_a_square_and_none_without_symmetry():
    square = np.stack(np.meshgrid(np.arange(5) * 40.0, np.arange(5) * 40.0), -1).reshape(-1, 2)
    assert strings_at(square + 300.0).azimuth_period_deg == 90
    scattered = np.random.default_rng(0).uniform(-300, 300, (40, 2))
    assert strings_at(scattered).azimuth_period_deg == 360
    assert strings_at([[0, 0], [90, 0]]).azimuth_period_deg == 360
    assert strings_at([[0, 0]]).azimuth_period_deg == 360


def test_geometry_takes_a_byte_order_mark_spaces_and_windows_lines():
    text = "\ufeffsensor_id, x, y, z\r\n1, 2, 3, 4\r\n\r\n".encode()
    assert parse_geometry(text, "here").xyz_m.tolist() == [[2, 3, 4]]


def test_geometry_written_again_is_the_same_table():
    again = parse_geometry(icecube86().to_csv(), "here")
    for name in ("sensor_id", "xyz_m", "string_id", "efficiency", "in_use"):
        np.testing.assert_array_equal(getattr(again, name), getattr(icecube86(), name))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,2,3,4,5,-1", r"\[here line 2\]: found '-1', expected positive"),
        ("1,2,3,4,5,inf", r"efficiency.*found 'inf'"),
        ("1,2,3,4,-7,1", r"string.*found '-7', expected a whole number from -1"),
        ("1,2,3,4,,1", r"string.*found ''"),
        ("1,2e9,3,4,5,1", r"column x.*found '2e9', expected metres within 1000 km"),
        ("1_0,2,3,4,5,1", r"sensor_id.*found '1_0'"),
        ("99999999999999999999,2,3,4,5,1", r"sensor_id.*expected a whole number"),
        ("1,2,,4,5,1", r"column y.*found ''"),
    ],
)
def test_geometry_names_line_and_cell_that_is_no_number_in_range(row, message):
    with pytest.raises(DetectorError, match=message):
        parse_geometry(f"{HEADER}{row}\n", "here")


@pytest.mark.parametrize("factor", [1e-3, 100.0, 1000.0])
def test_geometry_is_refused_when_it_is_not_in_metres(factor):
    known = icecube86()
    rows = np.column_stack([known.sensor_id, factor * known.xyz_m])
    text = "sensor_id,x,y,z\n" + "\n".join(",".join(map(str, row)) for row in rows)
    with pytest.raises(DetectorError, match=r"not in metres .*5160 sensors within .* to 100000 m"):
        parse_geometry(text, "here")


def test_geometry_of_one_sensor_has_no_extent_to_judge():
    assert parse_geometry("sensor_id,x,y,z\n0,1,2,3\n", "here").n_sensors == 1


def test_geometry_with_rows_longer_than_its_header_is_refused_at_once():
    # a table reader once took the first cells as an index, and needed a minute for this
    text = "0,7," + ";" * 110 + "1\n7,sensor_id,x,y,z"
    with pytest.raises(DetectorError, match="lacks columns"):
        parse_geometry(text, "here")


def test_geometry_says_its_medium_and_ice_changes_no_digest():
    rows = ["1,0,0,0", "2,5,5,5"]

    def read(*media):
        lines = [f"{row},{m}" for row, m in zip(rows, media, strict=True)] if media else rows
        return parse_geometry("\n".join(["sensor_id,x,y,z" + ",medium" * bool(media), *lines]), "h")

    silent, ice, water = read(), read("ice", "Ice "), read("water", "WATER")
    # digests of shards and models that were made before a geometry could say its medium
    assert icecube86().digest().startswith("dd6ece14e7a44daf")
    assert silent.digest().startswith("b097a78c0691ed7e")
    assert ice.digest() == silent.digest() != water.digest()
    assert (silent.medium, ice.medium, water.medium) == (ICE, ICE, WATER)
    assert silent.medium_words.startswith("ice, because the geometry does not say (a column")
    assert (ice.medium_words, water.medium_words, icecube86().medium_words) == (
        "ice",
        "water",
        "ice",
    )
    assert silent.difference_from(ice) == ""
    assert water.difference_from(silent) == "the same sensors, but in water, not in ice"
    again = parse_geometry(water.to_csv(), "again")
    assert (again.stated_medium, again.digest()) == (WATER, water.digest())
    assert parse_geometry(silent.to_csv(), "again").stated_medium is None


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("2,5,5,5,rock", r"several media \[here\]: found 'rock' and 'water', expected one"),
        ("2,5,5,5,", r"several media \[here\]: found '' and 'water'"),
        ("", None),
    ],
)
def test_geometry_of_no_known_medium_is_refused(second, message):
    head = "sensor_id,x,y,z,medium\n"
    if message:
        with pytest.raises(DetectorError, match=message):
            parse_geometry(f"{head}1,0,0,0,water\n{second}\n", "here")
        return
    with pytest.raises(DetectorError, match=r"medium \[here line 2, .*'rock', expected ice or wat"):
        parse_geometry(f"{head}1,0,0,0,rock\n2,5,5,5,rock\n", "here")
