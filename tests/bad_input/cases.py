"""All kinds of bad input, by the place where they are met."""

from tests.bad_input.case import Case
from tests.bad_input.document_cases import SHARDED
from tests.bad_input.event_cases import EVENTS, META_FILE
from tests.bad_input.place_cases import GEOMETRIES, PLACES
from tests.bad_input.prediction_cases import PREDICTIONS
from tests.bad_input.raw_cases import COLUMNS, FILES, PULSES
from tests.bad_input.service_cases import SERVICES
from tests.bad_input.settings_cases import SETTINGS
from tests.bad_input.several_files_cases import SEVERAL_FILES
from tests.bad_input.trained_cases import TRAINED
from tests.bad_input.truth_cases import AFTER_TRAINING, TRUTHS

GROUPS: dict[str, list[Case]] = {
    "Batch files": FILES,
    "Columns of a batch file": COLUMNS,
    "Single pulses": PULSES,
    "Events": EVENTS,
    "Several raw files": SEVERAL_FILES,
    "The meta file": META_FILE,
    "The truth": TRUTHS,
    "Places and times": PLACES,
    "The geometry": GEOMETRIES,
    "Settings": SETTINGS,
    "Documents between steps": SHARDED,
    "The truth, later": AFTER_TRAINING,
    "Checkpoints and models": TRAINED,
    "Predictions": PREDICTIONS,
    "Object store and registry": SERVICES,
}
