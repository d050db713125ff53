import pytest

from iceaggr.config import parse_config
from iceaggr.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 30, "n_heads": 4}, "no multiple of n_heads"),
        ({"n_dom_layers": 0}, "needs dom_statistics"),
        ({"seed_frame": True}, "need a seed"),
        ({"seed_head": True}, "need a seed"),
        ({"seed": "improved"}, "nothing uses the seed improved"),
        ({"seed": "improved", "point_fit": True}, "need seed_frame"),
        ({"seed": "improved", "seed_frame": True, "seed_alternatives": True}, "event_token"),
        ({"seed": "improved", "seed_frame": True, "vector_readout": True}, "vector_readout needs"),
        ({"seed": "best"}, "line_fit"),
    ],
)
def test_model_section_refuses_parts_that_do_not_fit(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"model": fields})
