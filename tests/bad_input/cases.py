"""All kinds of bad input, by the place where they are met."""

from tests.bad_input.case import Case
from tests.bad_input.document_cases import SHARDED
from tests.bad_input.event_cases import EVENTS, META_FILE
from tests.bad_input.place_cases import GEOMETRIES, PLACES
from tests.bad_input.raw_cases import COLUMNS, FILES, PULSES
from tests.bad_input.service_cases import SERVICES
from tests.bad_input.settings_cases import SETTINGS
from tests.bad_input.trained_cases import TRAINED

GROUPS: dict[str, list[Case]] = {
    "Batch files": FILES,
    "Columns of a batch file": COLUMNS,
    "Single pulses": PULSES,
    "Events": EVENTS,
    "The meta file": META_FILE,
    "Places and times": PLACES,
    "The geometry": GEOMETRIES,
    "Settings": SETTINGS,
    "Documents between steps": SHARDED,
    "Checkpoints and models": TRAINED,
    "Object store and registry": SERVICES,
}
