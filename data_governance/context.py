"""The inputs of a governance run and the objects that its stages share."""

from dataclasses import dataclass, field
from pathlib import Path

from data_governance.inputs.behaviour_log import Log
from data_governance.inputs.encoder import Encoder
from data_governance.inputs.engine import Engine
from data_governance.inputs.tables import Source
from data_governance.policy import Policy
from data_governance.stage import Workspace


@dataclass(frozen=True)
class Request:
    """The arguments of the command line; tables are files, folders or Hub ids."""

    behaviour: str
    queries: str
    catalogue: str
    out: Path
    encoder: Path | None = None
    previous: Path | None = None
    engine: str = "duckdb"
    overrides: Path | None = None
    incremental: bool = False


@dataclass(frozen=True)
class Inputs:
    """The opened log and tables."""

    behaviour: Log
    queries: Source
    catalogue: Source


@dataclass(frozen=True)
class GovernanceContext:
    """What the stages read besides the tables of the stages before them.

    Attributes:
        overrides: table of manual decisions, if any.
        previous: folder of an earlier run whose image features and category keys are reused.
        previous_keys: category_key -> document ids of that run; empty without one.
        incremental: keep the learned space and the groups of `previous`, and regroup touched documents only.
    """

    workspace: Workspace
    inputs: Inputs
    policy: Policy
    engine: Engine
    encoder: Encoder
    overrides: Source | None = None
    previous: Path | None = None
    previous_keys: dict[str, list[str]] = field(default_factory=dict)
    incremental: bool = False
