"""What the containers' scripts ask of `popmi`, with a `popmi` that only tells how it was called."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPTS = Path(__file__).parents[3] / "deploy" / "compose"


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a `popmi` first on the path that writes its words into a file; return the file."""
    calls = tmp_path / "calls"
    calls.touch()
    stand_in(tmp_path, "popmi", f'echo "$*" >> {calls}')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return calls


@pytest.fixture
def centre(said: Path, tmp_path: Path) -> Path:
    """A centre's home as `popmi server init` makes it when it is asked to, and the volumes beside it, empty."""
    (tmp_path / "run.toml").write_text("rounds = 3\n")
    stand_in(tmp_path, "python", f'exec {sys.executable} "$@"')
    made = '[ "$2" != init ] || echo "server.toml" > "$POPMI_SERVER_HOME/server.toml"'
    stand_in(tmp_path, "popmi", f'echo "$*" >> {said}\n{made}')
    for folder in ("pki", "secrets", "runs", "password", "gateway"):
        (tmp_path / folder).mkdir()
    for name in ("pki/ca.pem", "pki/ca.key", "pki/server.pem", "pki/server.key", "secrets/superexec"):
        (tmp_path / name).write_text(f"{name}\n")
    return tmp_path


def stand_in(tmp_path: Path, name: str, does: str) -> None:
    """Write a program that only tells, or does, what a test needs."""
    program = tmp_path / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


def script(tmp_path: Path, name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script, its fixed places moved below ``tmp_path``."""
    text = (SCRIPTS / name).read_text()
    for place in (
        "/run.toml",
        "/handovers",
        "/handover",
        "/data",
        "/password",
        "/gateway",
        "/runs",
        "/opt/popmi/deploy/compose",
    ):
        text = re.sub(rf"(?<=[ \"=]){place}(?=[/\" \n])", f"{tmp_path}{place}", text)
    file = tmp_path / name
    file.write_text(text)
    return subprocess.run(
        ["/bin/sh", str(file), *words], env=os.environ | environment, capture_output=True, text=True, timeout=20
    )


def test_images_without_the_names_of_their_classes_are_refused(said: Path, tmp_path: Path) -> None:
    done = script(tmp_path, "init.sh", POPMI_SERVER_HOME=str(tmp_path), IMAGES="/data/north", CLASSES="")
    assert done.returncode == 2
    assert "name the study's classes" in done.stderr
    assert said.read_text() == ""


@pytest.mark.parametrize(("classes", "study"), [("", "--data=phantom"), ("mel,nv", "--classes=mel,nv")])
def test_a_study_is_of_phantoms_or_of_the_classes_that_were_named(
    said: Path, centre: Path, classes: str, study: str
) -> None:
    done = script(centre, "init.sh", POPMI_SERVER_HOME=str(centre), CLASSES=classes)
    assert done.returncode == 0, done.stderr
    assert said.read_text().split()[-1] == study


def test_the_plan_of_the_first_start_stays_when_the_file_changes(centre: Path) -> None:
    for text in ("rounds = 3\n", "rounds = 9\n"):
        (centre / "run.toml").write_text(text)
        assert script(centre, "init.sh", POPMI_SERVER_HOME=str(centre)).returncode == 0
    assert (centre / "planned.toml").read_text() == "rounds = 3\n"


@pytest.mark.parametrize(("classes", "words"), [("", "server renew"), ("mel,nv", "server renew --classes=mel,nv")])
def test_a_home_that_is_there_is_renewed_and_no_setting_is_told_anew(
    said: Path, centre: Path, classes: str, words: str
) -> None:
    for _ in range(2):
        done = script(centre, "init.sh", POPMI_SERVER_HOME=str(centre), CLASSES=classes)
        assert done.returncode == 0, done.stderr
        (centre / "run.toml").unlink(missing_ok=True)
    first, second = said.read_text().splitlines()
    assert first.startswith(f"server init {centre}/planned.toml --project=compose")
    assert second == words


def in_image(**environment: str) -> list[str]:
    """Return the names of the packages of the lock that go into the image."""
    with (SCRIPTS.parents[1] / "requirements.lock").open() as lock:
        done = subprocess.run(
            ["/bin/sh", str(SCRIPTS / "image_lock.sh")],
            env={"PATH": os.environ["PATH"]} | environment,
            stdin=lock,
            capture_output=True,
            text=True,
            check=True,
        )
    return [line.partition("==")[0] for line in done.stdout.splitlines()]


def test_an_image_for_processors_only_lacks_what_only_gpus_need_and_nothing_else() -> None:
    whole, lean = in_image(), in_image(CPU_ONLY="1")
    left_out = [name for name in whole if name not in lean]
    assert set(lean) < set(whole)
    assert {"triton", "cuda-bindings", "nvidia-cublas", "nvidia-cudnn-cu13"} <= set(left_out)
    assert all(name == "triton" or name.startswith(("cuda-", "nvidia-")) for name in left_out)
    assert {"torch", "torchvision", "flwr", "opacus", "psycopg-binary"} <= set(lean)
    assert in_image(CPU_ONLY="") == whole
    assert {"ray", "playwright", "pytest", "mypy"} & set(whole) == set()


def test_a_run_file_that_cannot_be_read_is_told(said: Path, tmp_path: Path) -> None:
    done = script(tmp_path, "init.sh", POPMI_SERVER_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "cannot read RUN_FILE" in done.stderr
    assert said.read_text() == ""


def test_the_databases_password_is_made_once_and_long_and_its_owners_and_groups_only(centre: Path) -> None:
    made = []
    for _ in range(2):
        assert script(centre, "init.sh", POPMI_SERVER_HOME=str(centre)).returncode == 0
        made.append((centre / "password" / "password").read_text())
    assert made[0] == made[1]
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", made[0])
    assert (centre / "password" / "pgpass").read_text() == f"*:*:*:popmi:{made[0]}"
    # libpq takes no file that others may read; PostgreSQL reads as a member of the group.
    assert (mode(centre / "password" / "password"), mode(centre / "password" / "pgpass")) == ("0o640", "0o600")
    assert sorted(item.name for item in (centre / "password").iterdir()) == ["password", "pgpass"]


def test_the_gateway_gets_the_servers_certificate_and_no_other_secret(centre: Path) -> None:
    (centre / "gateway" / "pki").mkdir()
    (centre / "gateway" / "pki" / "server.pem").write_text("of last year\n")
    assert script(centre, "init.sh", POPMI_SERVER_HOME=str(centre)).returncode == 0
    given = {str(path.relative_to(centre / "gateway")): path for path in (centre / "gateway").rglob("*.*")}
    assert set(given) == {"server.toml", "pki/ca.pem", "pki/server.pem", "pki/server.key"}
    assert all(path.read_text() == f"{name}\n" and mode(path) == "0o600" for name, path in given.items())


def test_a_kit_is_made_once_and_lies_ready_whole(said: Path, tmp_path: Path) -> None:
    (tmp_path / "kits").mkdir()
    (tmp_path / "handovers" / "6").mkdir(parents=True)
    (tmp_path / "kits" / "north.zip").write_bytes(b"kit")
    done = script(tmp_path, "invite.sh", "north", "6", POPMI_SERVER_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert said.read_text() == ""
    assert [item.name for item in (tmp_path / "handovers" / "6").iterdir()] == ["kit.zip"]


def test_the_centre_invites_starts_the_run_once_and_becomes_the_keeper(said: Path, tmp_path: Path) -> None:
    below = tmp_path / "opt" / "popmi" / "deploy" / "compose"
    below.mkdir(parents=True)
    (below / "invite.sh").write_text(f'echo "invite $1 $2" >> {said}\n')
    for _ in range(2):
        done = script(tmp_path, "centre.sh", POPMI_SERVER_HOME=str(tmp_path), SITES="north:1 south:2", RUN="first")
        assert done.returncode == 0, done.stderr
        (tmp_path / "wanted.json").write_text("{}")
    invited = ["invite north 1", "invite south 2"]
    keeper = f"server up --only keeper --confirm-from {tmp_path}/handovers"
    assert said.read_text().splitlines() == [*invited, "server start --name first", keeper, *invited, keeper]


def test_a_start_that_was_killed_half_way_is_gone_on_with(said: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "plan.json").write_text("{}")
    done = script(tmp_path, "centre.sh", POPMI_SERVER_HOME=str(tmp_path), SITES=" ", RUN="first")
    assert done.returncode == 0, done.stderr
    assert said.read_text().splitlines()[0] == "server resume first"


def test_a_further_site_without_images_is_not_invited_beside_those_that_have_some(said: Path, tmp_path: Path) -> None:
    home = {"POPMI_SERVER_HOME": str(tmp_path), "IMAGES": "/srv/north"}
    done = script(tmp_path, "invite.sh", "phantom_sixth", "6", OWN_IMAGES="", **home)
    assert (done.returncode, said.read_text()) == (0, "")
    assert "not invited" in done.stdout


def test_beside_images_only_sites_with_images_are_invited(said: Path, tmp_path: Path) -> None:
    below = tmp_path / "opt" / "popmi" / "deploy" / "compose"
    below.mkdir(parents=True)
    (below / "invite.sh").write_text(f'echo "invite $1 $2" >> {said}\n')
    sites = "north:1:images phantom_ruler:3 south:2:images"
    done = script(tmp_path, "centre.sh", POPMI_SERVER_HOME=str(tmp_path), SITES=sites)
    assert done.returncode == 0, done.stderr
    assert said.read_text().splitlines()[:2] == ["invite north 1", "invite south 2"]
    assert "phantom_ruler has no images of its own: not invited" in done.stdout


@pytest.fixture
def hospital(said: Path, tmp_path: Path) -> Path:
    """A site whose kit lies ready and whose `popmi site enrol` writes what the real one does."""
    for folder in ("handover", "home", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "handover" / "kit.zip").write_bytes(b"kit")
    home = tmp_path / "home"
    writes = f'[ "$2" != enrol ] || touch {home}/node.key {home}/site.toml {home}/north.enrolment.json'
    stand_in(tmp_path, "popmi", f'echo "$*" >> {said}\n{writes}')
    stand_in(tmp_path, "python", 'echo "drawn for $2 in $3"')
    return tmp_path


def hospitals_words(hospital: Path, **environment: str) -> list[str]:
    """Run the site's script; return what it asked of `popmi`."""
    done = script(hospital, "hospital.sh", POPMI_SITE_HOME=str(hospital / "home"), SITE="north", **environment)
    assert done.returncode == 0, done.stderr
    return (hospital / "calls").read_text().splitlines()


def test_a_site_enrols_once_hands_over_its_enrolment_and_takes_part(hospital: Path) -> None:
    drawn = f"drawn for {hospital}/handover/kit.zip in {hospital}/home/phantom"
    enrolled = f"site enrol {hospital}/handover/kit.zip --data {drawn} --new-key --yes"
    again = ["site approve --installed --yes", "site run"]
    assert hospitals_words(hospital) == [enrolled, *again]
    assert hospitals_words(hospital) == [enrolled, *again, *again]
    assert (hospital / "handover" / "enrolment.json").exists()


def test_a_site_killed_while_it_enrolled_keeps_a_key_it_may_have_told(hospital: Path) -> None:
    (hospital / "home" / "node.key").touch()
    (hospital / "home" / "site.toml").touch()
    assert "--new-key" not in hospitals_words(hospital)[0]


def test_a_site_takes_its_own_images(hospital: Path) -> None:
    (hospital / "data" / "labels.csv").touch()
    assert f"--data {hospital}/data" in hospitals_words(hospital, OWN_IMAGES="/srv/north", IMAGES="/srv/north")[0]


def test_images_that_are_not_there_are_told_and_no_phantom_takes_their_place(hospital: Path) -> None:
    done = script(hospital, "hospital.sh", POPMI_SITE_HOME=str(hospital), SITE="north", OWN_IMAGES="/srv/nrth")
    assert done.returncode == 2
    assert "finds no labels.csv to read in /srv/nrth" in done.stderr
    assert (hospital / "calls").read_text() == ""


def test_a_site_without_images_rests_beside_those_that_have_some(hospital: Path) -> None:
    # The first nap is the end of it here.
    stand_in(hospital, "sleep", "exit 1")
    done = script(hospital, "hospital.sh", POPMI_SITE_HOME=str(hospital / "home"), SITE="north", IMAGES="/srv/south")
    assert "it takes no part" in done.stdout
    assert (hospital / "home" / "processes" / "alive").exists()
    assert (hospital / "calls").read_text() == ""


@pytest.fixture
def database(said: Path, tmp_path: Path) -> dict[str, str]:
    """The database's environment, with a PostgreSQL that only tells what it is asked."""
    stand_in(tmp_path, "postgres", f'echo "postgres $*: $(cat)" >> {said}')
    stand_in(tmp_path, "docker-entrypoint.sh", f'echo "entry $*" >> {said}')
    (tmp_path / "password").write_text("s3cret\n")
    return {"POSTGRES_USER": "popmi", "POSTGRES_PASSWORD_FILE": str(tmp_path / "password"), "PGDATA": str(tmp_path)}


def start_database(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = yaml.safe_load((SCRIPTS.parents[1] / "docker-compose.yml").read_text())["services"]["database"][
        "entrypoint"
    ]
    words = [word.replace("$$", "$") for word in words]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, timeout=20)


def test_a_database_of_before_is_given_the_password_that_the_others_have(said: Path, database: dict[str, str]) -> None:
    assert start_database(database).returncode == 0
    assert said.read_text().splitlines() == ["entry postgres"]
    (Path(database["PGDATA"]) / "PG_VERSION").write_text("15\n")
    assert start_database(database).returncode == 0
    told, begun = said.read_text().splitlines()[1:]
    assert told.startswith(f"postgres --single -D {database['PGDATA']} ")
    assert told.endswith(": ALTER ROLE popmi PASSWORD 's3cret'")
    # It is on no command line.
    assert "s3cret" not in told.partition(": ")[0]
    assert begun == "entry postgres"


def test_a_database_without_a_password_says_that_the_image_is_old(database: dict[str, str]) -> None:
    done = start_database(database | {"POSTGRES_PASSWORD_FILE": "/nowhere"})
    assert done.returncode == 1
    assert "the volume `password` holds none" in done.stderr


def runner_well(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPTS / "runner_well.py"), *words], capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_the_runner_is_well_once_flowers_has_lived_for_a_while(tmp_path: Path) -> None:
    program = tmp_path / "server" / "control" / "runner.py"
    program.parent.mkdir(parents=True)
    program.write_text("import time; time.sleep(600)")
    for folder in (program.parent, program.parent.parent):
        (folder / "__init__.py").touch()
    running = subprocess.Popen([sys.executable, "-m", "server.control.runner"], cwd=tmp_path)
    try:
        assert runner_well("0").returncode == 0
        young = runner_well("1000000000")
        assert young.returncode == 1
        assert re.search(r"was started \d+ s ago", young.stderr)
    finally:
        running.kill()
        running.wait()


def test_the_runner_is_not_well_without_flowers(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("runner_well", SCRIPTS / "runner_well.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "uptime").write_text("100.5 7.0\n")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cmdline").write_bytes(b"grep\0-r\0server.control.runner\0")
    assert module.oldest(tmp_path) is None
    for number, begun in (("8", 2000), ("9", 5000)):
        (tmp_path / number).mkdir()
        (tmp_path / number / "cmdline").write_bytes(b"/opt/venv/bin/python\0-m\0server.control.runner\0--x\0")
        fields = ["S", *["0"] * 18, str(begun), "0"]
        (tmp_path / number / "stat").write_text(f"{number} (a name) of) {' '.join(fields)}\n")
    assert module.oldest(tmp_path) == 100.5 - 2000 / os.sysconf("SC_CLK_TCK")
