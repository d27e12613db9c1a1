"""A node's copies of models: every byte counts, half a copy goes on, and what is in use stays."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError, ModelError
from orchestrator.weights import listing as listings
from orchestrator.weights.listing import Listing, look
from orchestrator.weights.node_store import NodeStore, in_use
from orchestrator.weights.settings import weights_of
from tests.unit import hub

KEY = b"k" * 32
PIECE, PART = 1000, 300


def make_model(folder: Path, sizes: dict[str, int], seed: int = 0) -> Path:
    chance = random.Random(seed)
    for name, size in {"config.json": 17, **sizes}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(chance.randbytes(size))
    return folder


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    model = make_model(tmp_path / "model", {"a.safetensors": 3500, "b/c.json": 10, "empty.txt": 0})
    return replace(look("m", str(model), PIECE), part_bytes=PART)


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    return NodeStore(str(tmp_path / "node" / "weights"), KEY, 1 << 30)


def fill(store: NodeStore, listing: Listing, numbers: range | None = None) -> dict[int, str]:
    held = store.held(listing)[0]
    for number in numbers if numbers is not None else range(len(listing.pieces)):
        piece, sha256 = listing.pieces[number], hashlib.sha256()
        for (offset, _), data in zip(listing.parts(piece), listings.read(listing, piece), strict=True):
            sha256.update(data)
            store.write(listing, piece, offset, memoryview(data))
        held[number] = store.digest(listing, number, sha256.hexdigest())
        store.note(listing, piece, held[number])
    return held


def files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_listing_has_what_vllm_reads_and_small_files_first(tmp_path: Path) -> None:
    unread = {"pytorch_model.bin": 5, "original/x.pth": 5, ".git/config": 5, "model.onnx": 5}
    model = make_model(tmp_path / "m", {"z.safetensors": 40, "a.safetensors": 40, "tokenizer.json": 9, **unread})
    found = look("m", str(model), 16)
    assert [file.name for file in found.files] == ["a.safetensors", "config.json", "tokenizer.json", "z.safetensors"]
    assert sum(piece.length for piece in found.pieces) == found.bytes
    big = look("m", str(make_model(tmp_path / "big", {"a.safetensors": listings.SMALL + 1})), 16 << 20)
    assert [p.file for p in big.pieces] == ["config.json", *3 * ["a.safetensors"]]
    assert big.small == 1


def test_an_origin_that_is_no_model_is_told_in_a_line(tmp_path: Path) -> None:
    for origin in (tmp_path / "missing", tmp_path):
        with pytest.raises(ModelError, match=str(origin)):
            look("m", str(origin), 16)
    with pytest.raises(ModelError, match=r"s3x://\*\*\*@bucket"):
        look("m", "s3x://key:secret@bucket/m", 16)


def test_a_file_that_changed_at_its_origin_is_not_read(listing: Listing) -> None:
    piece = listing.pieces[-1]
    file = Path(listing.origin) / piece.file
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(OSError, match=f"{piece.file} was changed at its origin"):
        list(listings.read(listing, piece))


def test_versions_differ_by_content_and_not_by_keys(tmp_path: Path, listing: Listing) -> None:
    again = look("other name", listing.origin, PIECE)
    assert again.version == listing.version
    Path(listing.origin, "config.json").write_bytes(b"another")
    assert look("m", listing.origin, PIECE).version != listing.version
    with_keys = [Listing("m", f"s3://{key}:s@b/m", listing.files, PIECE, PART).version for key in ("one", "two")]
    assert with_keys[0] == with_keys[1]


def test_a_whole_copy_is_the_model(store: NodeStore, listing: Listing) -> None:
    with store.locked(listing):
        held = fill(store, listing)
        store.finish(listing, held)
        assert store.held(listing) == (held, [])
    assert files(store.folder / listing.version) == files(Path(listing.origin))
    assert oct(store.folder.stat().st_mode & 0o777) == "0o700"


def test_half_a_copy_goes_on_where_it_stopped(store: NodeStore, listing: Listing) -> None:
    held = fill(store, listing, range(3))
    with open(store.folder / f"{listing.version}.pieces", "a") as notes:
        notes.write('[4, "cut o')
    assert store.held(listing) == (held, [])


@pytest.mark.parametrize("seed", range(200))
def test_a_changed_byte_is_noticed_wherever_it_is(store: NodeStore, listing: Listing, seed: int) -> None:
    held = fill(store, listing)
    store.finish(listing, held)
    chance = random.Random(seed)
    size = sum(file.size for file in listing.files)
    at = chance.randrange(size)
    for file in listing.files:
        if at < file.size:
            break
        at -= file.size
    target = store.folder / listing.version / file.name
    data = bytearray(target.read_bytes())
    data[at] ^= 1 << chance.randrange(8)
    before = target.stat()
    target.write_bytes(data)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    there, refused = store.held(listing)
    (missing,) = set(held) - set(there)
    piece = listing.pieces[missing]
    assert piece.file == file.name
    assert piece.offset <= at < piece.offset + piece.length
    assert refused == [f"{piece}, on this disk"]
    fill(store, listing, range(missing, missing + 1))
    assert store.held(listing) == (held, [])
    assert files(store.folder / listing.version) == files(Path(listing.origin))


def test_a_list_by_another_key_is_not_believed(store: NodeStore, listing: Listing) -> None:
    fill(store, listing)
    other = NodeStore(str(store.folder), b"x" * 32, 1 << 30)
    assert other.held(listing)[0] == {}
    assert other.swarm(listing) != store.swarm(listing)


def test_what_does_not_belong_there_is_removed(store: NodeStore, listing: Listing, tmp_path: Path) -> None:
    held = fill(store, listing)
    copy = store.folder / listing.version
    (copy / "modeling_x.py").write_text("print('code')")
    secret = tmp_path / "secret"
    secret.write_bytes((copy / "config.json").read_bytes())
    (copy / "config.json").unlink()
    (copy / "config.json").symlink_to(secret)
    there, refused = store.held(listing)
    (missing,) = set(held) - set(there)
    assert listing.pieces[missing].file == "config.json"
    assert len(refused) == 1
    assert not (copy / "modeling_x.py").exists()
    assert not (copy / "config.json").is_symlink()


def test_the_least_recently_used_goes_first_and_none_in_use(tmp_path: Path) -> None:
    store = NodeStore(str(tmp_path / "node"), KEY, 3100)
    found = [look("m", str(make_model(tmp_path / f"m{i}", {"a.safetensors": 1000}, seed=i)), 500) for i in range(4)]
    for age, one in enumerate(found[:3]):
        fill(store, one)
        os.utime(store.folder / f"{one.version}.pieces", (age, age))
    used = in_use(store.folder, found[0])
    store.make_room(found[3])
    assert [(store.folder / one.version).is_dir() for one in found] == [True, False, True, False]
    os.close(used)
    fill(store, found[3])
    os.utime(store.folder / f"{found[3].version}.pieces", (9, 9))
    store.make_room(found[1])
    assert [(store.folder / one.version).is_dir() for one in found] == [False, False, True, True]


def test_a_folder_that_others_can_write_is_not_used(store: NodeStore, listing: Listing) -> None:
    store.folder.mkdir(parents=True)
    store.folder.chmod(0o777)
    with pytest.raises(PermissionError, match="can be written by others"), store.locked(listing):
        pass


def test_a_model_of_the_hub_is_read_in_ranges_and_by_its_commit(
    make_app, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model", {"a.safetensors": (2 << 20) + 5, "b/c.json": 10})
    (model / "config.json").write_text('{"num_attention_heads": 4}')
    words = ("engine=fake", "model=llama_3_1_8b", "cold_start.share_weights=true", "weights.piece_mib=1")
    with hub.running(model) as (address, asked):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        weights = weights_of(make_app(*words, f"model.id={hub.ID}"))
        assert weights is not None
        listing = weights.listing
        assert listing.origin == f"hf://{hub.ID}@{hub.COMMIT}"
        whole = {f.name: listings.read_file(listing, f.name) for f in listing.files}
        assert whole == files(model)
        assert "a.safetensors bytes=1048576-2097151" in asked
        without = weights_of(make_app(*words, f"model.id={hub.ID}", "model.weights=false"))
        assert [file.name for file in without.listing.files] == ["b/c.json", "config.json"]
        with pytest.raises(ModelError, match="someone/else is not to be had from the hub"):
            weights_of(make_app(*words, "model.id=someone/else"))
        with pytest.raises(ConfigError, match=r"0\.0 GiB, and weights\.max_gib=0\.001"):
            weights_of(make_app(*words, f"model.id={hub.ID}", "weights.max_gib=0.001"))


def test_a_large_model_has_few_pieces_of_several_parts() -> None:
    """Each piece costs each node a question to the directory, and 140 GB in parts of 16 MiB are nine thousand."""
    found = Listing("m", "s3://b/m", (listings.File("a.safetensors", 140 * 10**9),), 33 * 16 << 20, 16 << 20)
    assert len(found.pieces) == 253
    assert {length for _, length in found.parts(found.pieces[0])} == {16 << 20}
    assert sum(length for piece in found.pieces for _, length in found.parts(piece)) == 140 * 10**9


def test_how_large_a_piece_is(tmp_path: Path) -> None:
    few, many = (make_model(tmp_path / name, {"a.safetensors": size}) for name, size in (("few", 200), ("many", 9000)))
    assert look("m", str(few), 1).piece_bytes == 1
    found = look("m", str(many), 16)
    assert (found.piece_bytes, found.part_bytes) == (48, 16)
    assert len(found.pieces) <= 256
