import copy
import io
import json

import pytest
import torch

from anchoredit_model.errors import AnchorEditError
from anchoredit_model.networks.text_encoder import MAX_ROWS, TextEncoder, clean_text

pytest.importorskip("sentencepiece")
pytest.importorskip("transformers")

CORPUS = ["make the circle red", "move the blue square to the left", "undo the last change, please", "add a star"]


@pytest.fixture(scope="module")
def vocabulary() -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 10),
        model_writer=model,
        vocab_size=320,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def encoder(vocabulary) -> TextEncoder:
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    config = UMT5Config(vocab_size=340, d_model=16, d_kv=8, num_heads=2, d_ff=32, num_layers=2, dropout_rate=0.0)
    return TextEncoder(UMT5EncoderModel(config), vocabulary, text_dim=40)


def test_text_embedding_is_independent_of_its_batch(encoder):
    texts = [
        "make the circle red",
        "",
        "\u628a\u5706\u5708\u53d8\u6210\u7ea2\u8272",
        "move the blue square to the left " * 9,
        "add a star",
    ]
    exact = TextEncoder(copy.deepcopy(encoder.model).double(), encoder.vocabulary, text_dim=40)
    # Float32 differs by the rounding of differently shaped matrix products, a few units in the last place.
    for precise, tolerance in ((exact, 1e-6), (encoder, 5e-6)):
        alone = {text: precise.encode([text])[0] for text in texts}
        together = precise.encode(texts * 8)  # more than one forward pass
        for text, rows in zip(texts * 8, together, strict=True):
            assert torch.allclose(rows, alone[text], atol=tolerance, rtol=0)


def test_rows_are_the_valid_ones_padded_in_width(encoder):
    empty, blank, text = encoder.encode(["", " \n\t ", "make the circle red"])
    assert empty.shape == (1, 40) and empty.dtype == torch.float32  # the end token alone
    assert torch.equal(empty, blank)
    assert len(text) == len(encoder.pieces.encode("make the circle red")) + 1
    assert text[:, :16].abs().min() > 0 and not text[:, 16:].any()
    assert encoder.encode([]) == []


def test_any_script_encodes_without_the_unknown_token(encoder):
    (ids,) = encoder.tokenise(["\u628a\u5706\u5708\u53d8\u6210\u7ea2\u8272 \U0001f3a8"])
    assert 2 not in ids and ids[-1] == 1


def test_truncation_keeps_the_end_token(encoder):
    (ids,) = encoder.tokenise(["star " * 2000])
    assert len(ids) == MAX_ROWS and ids[-1] == 1 and 1 not in ids[:-1]
    assert encoder.encode(["star " * 2000])[0].shape == (MAX_ROWS, 40)


def test_white_space_and_entities_are_cleaned_as_wan_does(encoder):
    assert clean_text("  make\n the\u3000 circle\t&amp;amp;  star &lt;3 ") == "make the circle & star <3"
    assert encoder.tokenise([" add  a\nstar "]) == encoder.tokenise(["add a star"])


def test_saving_and_loading_change_nothing(encoder, tmp_path):
    from safetensors.torch import load_file
    from transformers import UMT5EncoderModel

    texts = ["make the circle red", ""]
    encoder.save_pretrained(tmp_path / "flat")
    loaded = TextEncoder.from_pretrained(tmp_path / "flat", text_dim=40)
    assert all(map(torch.equal, encoder.encode(texts), loaded.encode(texts)))
    assert {path.name for path in (tmp_path / "flat").iterdir()} == {"config.json", "model.safetensors", "spiece.model"}

    # The keys ComfyUI's comfy/text_encoders/t5.py expects of a umT5: one embedding, a position bias in every layer.
    keys = load_file(tmp_path / "flat" / "model.safetensors").keys()
    assert {"shared.weight", "encoder.final_layer_norm.weight"} <= keys and "encoder.embed_tokens.weight" not in keys
    assert sum("relative_attention_bias" in key for key in keys) == 2
    plain, report = UMT5EncoderModel.from_pretrained(tmp_path / "flat", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(map(torch.equal, plain.state_dict().values(), encoder.model.state_dict().values()))


def test_a_diffusers_folder_loads(encoder, vocabulary, tmp_path):
    encoder.model.save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(vocabulary)
    expected = encoder.encode(["add a star"])[0]
    for folder in (tmp_path, tmp_path / "text_encoder"):
        assert torch.equal(TextEncoder.from_pretrained(folder, text_dim=40).encode(["add a star"])[0], expected)
    named = TextEncoder.from_pretrained(tmp_path / "text_encoder", tmp_path / "tokenizer", text_dim=40)
    assert torch.equal(named.encode(["add a star"])[0], expected)


def test_mistakes_are_named(encoder, tmp_path):
    with pytest.raises(AnchorEditError, match="no text encoder at .*nowhere"):
        TextEncoder.from_pretrained(tmp_path / "nowhere")

    def broken(change) -> str:
        folder = tmp_path / "broken"
        encoder.save_pretrained(folder)
        change(folder)
        with pytest.raises(AnchorEditError) as caught:
            TextEncoder.from_pretrained(folder, text_dim=40)
        assert "\n" not in str(caught.value) and "broken" in str(caught.value)
        return str(caught.value)

    def lose_a_weight(folder):
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        del weights["encoder.final_layer_norm.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def set_width_to_a_word(folder):
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, "d_model": "x"}))

    assert "cannot be read" in broken(lambda folder: (folder / "model.safetensors").write_bytes(b"torn"))
    assert "cannot be read" in broken(lambda folder: (folder / "config.json").write_text("{"))
    assert "cannot be read" in broken(set_width_to_a_word)
    assert "'t5'" in broken(lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'))
    assert "vocabulary" in broken(lambda folder: (folder / "spiece.model").write_bytes(b"torn"))
    assert "is empty" in broken(lambda folder: (folder / "spiece.model").write_bytes(b""))
    assert "no spiece.model" in broken(lambda folder: (folder / "spiece.model").unlink())
    assert "encoder.final_layer_norm.weight" in broken(lose_a_weight)

    encoder.save_pretrained(tmp_path / "wide")
    with pytest.raises(AnchorEditError, match="16 wide"):
        TextEncoder.from_pretrained(tmp_path / "wide", text_dim=8)
