"""Errors a person can act on: who, what, expected and got, next step."""


class PopmiError(Exception):
    """Base of every error POPMI raises on purpose; ``exit_code`` is what the CLI returns."""

    exit_code = 1


class ConfigError(PopmiError):
    """A run is described wrongly (TOML, flag or environment)."""

    exit_code = 2


class DataError(PopmiError):
    """A site's data set cannot be used; the site must not join."""

    exit_code = 3


class ModelError(PopmiError):
    """A backbone, adapter or checkpoint does not fit."""

    exit_code = 4


class UpdateError(PopmiError):
    """A site's update cannot be averaged; that site is quarantined for the round."""

    exit_code = 5


class PrivacyError(PopmiError):
    """Training would break the privacy promise; the site stops."""

    exit_code = 6


class RunError(PopmiError):
    """A run ended without a result (no site ever answered, folder unusable)."""

    exit_code = 7


class RecordError(RunError):
    """A run's record refuses what is to be written, and would refuse it again: no reason to wait."""


class SetupError(PopmiError):
    """A server or a site is not set up as it must be (kit, key, certificate, approval)."""

    exit_code = 8


class AuditError(PopmiError):
    """An audit log cannot be written, or was changed after it was written."""

    exit_code = 9


class LeftError(SetupError):
    """The site has left its project: trying again does not help, so a service must not (its ``exit_code`` tells)."""

    exit_code = 10


class AccessError(PopmiError):
    """An account, a password or a token is not as it must be.

    Args:
        text: What is wrong and what helps, with ``%(name)s`` for each of ``values``: pages translate it before the
            values come in.
        values: What stands for the names in ``text``.
    """

    exit_code = 11

    def __init__(self, text: str, **values: object) -> None:
        super().__init__(text % values)
        self.text, self.values = text, values
