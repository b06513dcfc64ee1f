"""What server and sites say to each other: the records of a message and the instruction inside.

A message carries named records. Instructions travel as JSON of a frozen model, tensors as arrays, figures as
floats; nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_serializer

from popmi_core.config import LocalConfig, MatchConfig, ModelConfig, PrivacyConfig, RunConfig
from popmi_core.errors import UpdateError
from popmi_core.measure import TurnedTold, TurningAsk

# Record names inside a message.
INSTRUCTION = "instruction"
REPORT = "report"
MODEL = "model"
CONTROL = "control"
CONTROL_CHANGE = "control_change"
GRAMS = "grams"
NORMS = "norms"
ACTIVATIONS = "activations"
SCORES_PREFIX = "scores."
# Questions beside training and evaluation, as Flower names message types: an action below a category.
JUDGE = "judge"
MEASURE_NORMS = "norms"
ACTIVATIONS = "activations"
JSON_KEY = "json"
# Key of the run configuration, and the file in a run's folder that holds its plan.
PLAN_KEY = "plan"
PLAN_FILE = "plan.json"
# Held by whoever is at a real run; the plan itself is replaced when a run is resumed.
LOCK_FILE = "run.lock"
# Where a server keeps its runs, and the database of their records where it is not a file in each folder.
HOME_VARIABLE = "POPMI_SERVER_HOME"
DATABASE_VARIABLE = "POPMI_DATABASE"
RUNS_FOLDER = "runs"
AUDIT_FILE = "audit.jsonl"

POOLED_SITE = "pooled"

Split = Literal["train", "val", "test"]
Statistic = Literal["gram", "activations"]

# Bounds of what a site tells. Nothing in a report may be more than the record and the pages can hold.
MAX_EXAMPLES = 10_000_000
"""Images of one site; a site with more is not believed."""
MAX_REPORT = 1_000_000
"""Letters of a whole report."""
MAX_REASON = 4_000
"""Letters of a site's error or note; the site cuts its own."""
FIGURES = (
    "auroc", "auprc", "macro_f1", "balanced_accuracy", "accuracy", "ece", "brier", "nll", "rotation_consistency",
    "rotation_variation", "num_examples",
)  # fmt: skip
METRIC_NAMES = frozenset({"train.loss", *(f"{split}.{figure}" for split in get_args(Split) for figure in FIGURES)})
"""All figures a report may tell; ``train.loss`` in nats."""


def _known(name: str) -> str:
    if name not in METRIC_NAMES:
        raise ValueError("a figure's name is unknown")
    return name


Count = Annotated[int, Field(ge=0, le=MAX_EXAMPLES)]
Figure = Annotated[float, Field(allow_inf_nan=False)] | None
_NO_CONTROL_LETTERS = r"^[^\x00-\x1f\x7f]+$"
Label = Annotated[str, Field(max_length=200, pattern=_NO_CONTROL_LETTERS)]
Angle = Annotated[float, Field(ge=0, le=181, allow_inf_nan=False)]
"""Degrees; half a turn, and what a mean of rounded ones may be above it."""
Counts = Annotated[tuple[Count | None, ...], Field(max_length=100_000)]
"""Numbers of images in order of the classes; None where a number may not be told."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Assignment(_Frozen):
    """Which hospital a simulated node plays. A real site takes this from its own node configuration."""

    site: str
    data: tuple[str, ...] = Field(min_length=1, description="folders or phantom:<name>; several are pooled")
    state: str = Field(description="folder for what stays on site: privacy ledger, control variate")


class Instruction(_Frozen):
    """What the server asks of a site in one round; ``lineup`` serves engines that only number their nodes."""

    run: str
    server_round: int = Field(ge=0)
    rounds: int = Field(ge=1, description="planned rounds, for the privacy budget")
    nonce: str = Field(default="", description="the answer must repeat it")
    seed: int = Field(ge=0)
    classes: tuple[str, ...]
    model: ModelConfig
    local: LocalConfig
    privacy: PrivacyConfig | None = None
    phantom_images: int
    splits: tuple[Split, ...] = ("val",)
    lineup: tuple[Assignment, ...] = ()
    match: MatchConfig | None = Field(default=None, description="match to the broadcast model before sending")
    statistics: tuple[Statistic, ...] = ()
    num_images: int = Field(default=512, ge=1, description="training images that statistics look at")
    frozen: tuple[str, ...] = Field(default=(), description="name prefixes that are not trained in this round")
    keep_local: tuple[str, ...] = Field(default=(), description="name patterns of tensors that never leave")
    count_classes: bool = Field(default=False, description="tell how many training images every class has")
    class_counts: tuple[int, ...] = Field(default=(), description="all sites' counts: answer by your own frequencies")
    candidate: str = Field(default="", description="whom a judged model stands for")
    num_models: int = Field(default=1, ge=1, description="models to be judged together, as an ensemble")
    ledger_entries: int = Field(default=0, ge=0, description="entries the site's privacy ledger is known to have had")
    turning: TurningAsk | None = Field(default=None, description="turn validation images and tell what it changes")

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked(self, handler: Any) -> dict[str, Any]:
        # A site of an earlier version refuses what it does not know; it is never asked to turn images.
        return {key: value for key, value in handler(self).items() if key != "turning" or value is not None}


class RunPlan(_Frozen):
    """What the server app is started with: the run's description and where it meets this machine."""

    run: str = Field(description="name of the run, also of its folder")
    config: RunConfig
    folder: str = Field(description="run folder for the record, the models and the report")
    data_name: str
    phantom: bool
    classes: tuple[str, ...]
    lineup: tuple[Assignment, ...]
    external: str | None = Field(default=None, description="folder of a test set no site trains on")
    resume: bool = False
    names: tuple[str, ...] = Field(default=(), description="sites a real federation expects; empty in a simulation")
    sites_file: str | None = Field(default=None, description="register that tells which node is which site")
    patience: float = Field(default=0.0, ge=0, description="seconds to wait for room on the disk or for the database")

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all sites of the run."""
        return self.names or tuple(item.site for item in self.lineup)


class Report(_Frozen):
    """A site's answer apart from tensors. ``error`` is safe to show: it never quotes data or file names.

    Every number and text has a bound: a report that leaves one is refused before anything of it is kept.
    """

    run: Label
    server_round: int = Field(ge=0, le=1_000_000)
    site: Label
    nonce: str = Field(default="", max_length=64)
    error: str | None = Field(default=None, max_length=MAX_REASON)
    waiting: bool = Field(default=False, description="the site has not approved this code yet; it may be asked again")
    stopped: bool = Field(default=False, description="the site will train no more in this run (budget spent)")
    num_examples: Count = 0
    seconds: float = Field(default=0.0, ge=0, le=1e9)
    metrics: dict[Annotated[str, AfterValidator(_known)], Figure] = Field(default_factory=dict)
    epsilon: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    ledger_entries: int = Field(default=0, ge=0, lt=2**31, description="entries of the site's privacy ledger")
    skipped_rows: Count = 0
    phantom: bool = False
    split_sizes: dict[Split, Count] = Field(default_factory=dict)
    class_counts: tuple[Count, ...] = Field(default=(), max_length=100_000)
    gains: dict[Label, Figure] = Field(
        default_factory=dict, max_length=10_000, description="by layer, where the site matched"
    )
    identity: dict[Label, bool] = Field(default_factory=dict, max_length=10_000)
    match_note: str = Field(default="", max_length=MAX_REASON)
    angles: dict[Label, Angle] = Field(default_factory=dict, max_length=10_000)
    moved: dict[Label, Count] = Field(default_factory=dict, max_length=10_000, description="units by layer")
    units: dict[Label, Count] = Field(default_factory=dict, max_length=10_000)
    popmi: str = Field(
        default="",
        max_length=40,
        pattern=r"^[0-9A-Za-z.+!_-]*$",
        description="version; empty from those that tell none",
    )
    class_table: dict[Split, Counts] = Field(default_factory=dict, description="images by split and class")
    confusion: dict[Split, Annotated[tuple[Counts, ...], Field(max_length=100)]] = Field(default_factory=dict)
    turned: TurnedTold | None = None


def model_record(number: int) -> str:
    """Return the name of the record that holds an ensemble's model ``number``, from 0."""
    return f"{MODEL}.{number}"


def stays_at_site(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a tensor of this name stays at its site: a pattern lies in the name, ``*`` and ``?`` allowed."""
    return any(fnmatchcase(name, f"*{pattern}*") for pattern in patterns)


def parse_report(text: object, *, site: str) -> Report:
    """Return a site's report.

    Raises:
        UpdateError: If the text is no report.
    """
    if not isinstance(text, str):
        raise UpdateError(f"site {site}: the reply holds no report. Check that the site runs the same POPMI version.")
    if len(text) > MAX_REPORT:
        raise UpdateError(
            f"site {site}: the report has {len(text)} letters, expected at most {MAX_REPORT}. Check that the site runs "
            "the same POPMI version."
        )
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        raise UpdateError(
            f"site {site}: unreadable report (fields: {_fields(error)}). Check that the site runs the same POPMI "
            "version."
        ) from error


def _fields(error: ValidationError) -> str:
    # Never what stood there, nor keys of a site's own making: either could be anything, of any length.
    told: set[str] = set()
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        field = str(item["loc"][0]) if item["loc"] else ""
        told.add(f"{field if field in Report.model_fields else 'whole text'}: {item['msg']}")
    return "; ".join(sorted(told)[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "")


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed from the parts' text, the same on every machine and Python."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Progress(_Frozen):
    """What a log record carries (attribute ``progress``) for whoever draws the run while it goes on."""

    kind: Literal["joined", "site", "round"]
    server_round: int = 0
    rounds: int = 0
    site: str = ""
    phase: str = ""
    seconds: float = 0.0
    figures: dict[str, float | None] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
