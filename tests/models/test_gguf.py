"""GGUF files become model folders once, with the very numbers transformers reads; bad files are refused."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import allheads.models.gguf as ours
from allheads.errors import AllHeadsError
from allheads.models import names
from allheads.models.gguf import unpacked
from allheads.models.pretrained import load

WIDTH, HIDDEN, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
TOKENS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "th", "the"]
MERGES = ["t h", "th e"]


def write_gguf(path: Path, *, arch: str = "llama", without: str = "", poison: float | None = None) -> Path:
    """A random llama of two layers in Q4_1, the kind of SmolLM2's file; optionally spoiled."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(0)
    kv_width = WIDTH * KV_HEADS // HEADS
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        for name, shape in {
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (kv_width, WIDTH),
            "attn_v": (kv_width, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (HIDDEN, WIDTH),
            "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
        }.items():
            shapes[f"blk.{layer}.{name}"] = shape
    for name, shape in shapes.items():
        if name == without:
            continue
        weight = random.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            if poison is not None and name == "blk.1.ffn_norm":
                weight[3] = poison
            writer.add_tensor(f"{name}.weight", weight)
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def warm(tmp_path_factory, tiny):
    """A cache that holds the tiny model's copy; for tests that only read it."""
    root = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLHEADS_CACHE", str(root))
        unpacked(tiny)
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("ALLHEADS_CACHE", str(folder))
    return folder


def test_copy_is_bit_identical(tiny, warm, monkeypatch):
    monkeypatch.setenv("ALLHEADS_CACHE", str(warm))
    direct = AutoModelForCausalLM.from_pretrained(
        tiny.parent, gguf_file=tiny.name, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny.parent, gguf_file=tiny.name)
    copied = AutoModelForCausalLM.from_pretrained(unpacked(tiny), dtype=torch.float32)
    expected, got = direct.state_dict(), copied.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)

    bridge = load(tiny)
    ids = tokenizer("the cat sat", return_tensors="pt").input_ids
    assert torch.equal(bridge.to_tokens("the cat sat"), ids)
    with torch.no_grad():
        assert torch.equal(bridge(ids), direct(ids).logits)
    assert bridge.cfg.model_name == "tiny"


def test_second_use_reads_no_gguf(tiny, warm, monkeypatch):
    monkeypatch.setenv("ALLHEADS_CACHE", str(warm))
    monkeypatch.setattr(ours, "AutoConfig", None)
    assert unpacked(tiny).parent == warm


def test_same_bytes_elsewhere_share_the_copy_and_others_do_not(tiny, warm, monkeypatch, tmp_path):
    monkeypatch.setenv("ALLHEADS_CACHE", str(warm))
    built = []
    monkeypatch.setattr(ours, "cached_folder", lambda key, build: built.append(key))
    same, other = tmp_path / "tiny.gguf", tmp_path / "other" / "tiny.gguf"
    other.parent.mkdir()
    same.write_bytes(tiny.read_bytes())
    other.write_bytes(tiny.read_bytes()[:-1] + b"!")
    for path in (tiny, same, other):
        unpacked(path)
    assert built[0] == built[1] != built[2]
    monkeypatch.setattr(names, "COPY_FORMAT", names.COPY_FORMAT + 1)
    unpacked(tiny)
    assert built[3] not in built[:3]


def test_a_damaged_copy_is_rebuilt(tiny, root, caplog):
    folder = unpacked(tiny)
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert unpacked(tiny) == folder
    assert "damaged" in caplog.text
    assert weights.read_bytes() == good


def test_no_noise_away_from_a_terminal_and_settings_restored(tiny, root, capfd):
    before = transformers.modeling_gguf_pytorch_utils.tqdm
    assert transformers.utils.logging.is_progress_bar_enabled()
    load(tiny)
    assert capfd.readouterr() == ("", "")
    assert transformers.modeling_gguf_pytorch_utils.tqdm is before
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_progress_on_a_terminal(tiny, root, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    unpacked(tiny)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Unpacking tiny.gguf, only once: writing: 100%" in err


def cut(path: Path, source: Path, size: int) -> Path:
    path.write_bytes(source.read_bytes()[:size])
    return path


BAD = {
    "empty": (lambda path, good: cut(path, good, 0), "got an empty file"),
    "not gguf": (lambda path, good: path.write_text("<html>404</html>"), "begins with b'<htm'"),
    "only magic": (lambda path, good: cut(path, good, 4), "truncated or damaged"),
    "header cut": (lambda path, good: cut(path, good, 300), "truncated or damaged"),
    "weights cut": (lambda path, good: cut(path, good, good.stat().st_size - 4000), "truncated or damaged"),
    "unknown kind": (lambda path, good: write_gguf(path, arch="rwkv6"), "rwkv6"),
    "tensor missing": (
        lambda path, good: write_gguf(path, without="blk.1.ffn_up"),
        "without model.layers.1.mlp.up_proj.weight",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_and_leave_nothing(kind, tiny, root, tmp_path):
    spoil, message = BAD[kind]
    path = tmp_path / "bad.gguf"
    spoil(path, tiny)
    with pytest.raises(AllHeadsError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert not root.exists() or not any(root.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(value, root, tmp_path):
    path = write_gguf(tmp_path / "poisoned.gguf", poison=value)
    with pytest.raises(AllHeadsError, match=r"1 NaN or infinite values in model\.layers\.1\.post_attention"):
        load(path)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError("disk on fire")])
def test_an_interrupted_write_leaves_nothing(stop, tiny, root, monkeypatch):
    def dies_halfway(model, folder):
        original(model, folder)
        assert Path(folder, "model.safetensors").exists()
        raise stop

    original = PreTrainedModel.save_pretrained
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", dies_halfway)
    with pytest.raises((KeyboardInterrupt, AllHeadsError)):
        unpacked(tiny)
    assert not any(root.iterdir())
    monkeypatch.undo()
    monkeypatch.setenv("ALLHEADS_CACHE", str(root))
    assert (unpacked(tiny) / "manifest.json").exists()


def test_the_file_is_parsed_once(tiny, root, monkeypatch):
    """transformers by itself parses it for the configuration, the weights and the tokenizer, one after the other."""
    parsed = []

    class Counting(gguf.GGUFReader):
        def __init__(self, path, *args, **options):
            parsed.append(path)
            super().__init__(path, *args, **options)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    unpacked(tiny)
    assert len(parsed) == 1 and gguf.GGUFReader is Counting
