"""A home that is there keeps its settings: over an upgrade whose defaults are others, and when it is renewed."""

from __future__ import annotations

import pytest

from popmi_core.errors import SetupError
from server.control.home import ServerHome
from server.control.operate import init_home, renew_home, settings_from

DESCRIBED = {
    "project": "P", "endpoint": "a.example:443", "superlink": "127.0.0.1:18000", "names": (), "classes": ("mel", "nv"),
    "data": None,
}  # fmt: skip


def with_config(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    return settings_from(**DESCRIBED | {"config": tmp_path / "run.toml"})


def test_other_defaults_of_a_newer_popmi_are_no_other_config(tmp_path):
    home, text = ServerHome(tmp_path / "h"), "rounds = 4\n[local]\nepochs = 2\n"
    settings = with_config(tmp_path, text)
    # As an older POPMI left it, whose defaults were others, also of what lies in a table that the file names.
    local = settings.config.local.model_copy(update={"batch_size": 7})
    model = settings.config.model.model_copy(update={"image_size": 48})
    older = settings.config.model_copy(update={"seed": 77, "model": model, "local": local})
    home.write_settings(settings.model_copy(update={"config": older, "connections_per_address": 9}))
    before = home.settings_file.read_bytes()
    init_home(home, settings)
    assert home.settings_file.read_bytes() == before
    assert (home.settings().config.seed, home.settings().config.model.image_size) == (77, 48)


@pytest.mark.parametrize("other", ["rounds = 5\n", "rounds = 4\nseed = 9\n", "[local]\nepochs = 3\n"])
def test_what_the_file_says_otherwise_is_another_config(tmp_path, other):
    home = ServerHome(tmp_path / "h")
    init_home(home, with_config(tmp_path, "rounds = 4\n[local]\nepochs = 2\n"))
    with pytest.raises(SetupError, match="set up already, with other config"):
        init_home(home, with_config(tmp_path, other))


def test_renewing_leaves_the_settings_alone_and_makes_whole_what_is_missing(home):
    before = home.settings_file.read_bytes()
    home.secret.unlink()
    home.certificate.unlink()
    assert renew_home(home, ("mel", "nv")).made
    assert home.secret.exists()
    assert home.certificate.exists()
    assert home.settings_file.read_bytes() == before


def test_classes_that_are_not_the_studys_are_told_when_a_home_is_renewed(home):
    with pytest.raises(SetupError, match="set up already, with classes mel, nv, not nv, mel: they are fixed then"):
        renew_home(home, ("nv", "mel"))
