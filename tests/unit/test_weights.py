"""Where starting weights come from: local files, timm's pretrained ones with and without network, or nowhere."""

import logging
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from skindist import weights as module
from skindist.errors import UserError
from skindist.model import build_model
from skindist.recipe import ModelConfig

REVISION = "0123456789abcdef0123456789abcdef01234567"
Start = Callable[[type[BaseHTTPRequestHandler]], str]


def image_net(name: str, seed: int = 1, **options: Any) -> dict[str, Tensor]:
    """The state dict of a timm model, with 1000 classes where `options` do not say otherwise."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = timm.create_model(name, **options).state_dict()
    return state


def save(state: dict[str, Tensor], file: Path) -> str:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return str(file)


def zero_head(model: nn.Module) -> bool:
    """Whether the head of a test_resnet has two classes, and nothing but zeros."""
    state = model.state_dict()
    return len(state["fc.weight"]) == 2 and not state["fc.weight"].any() and not state["fc.bias"].any()


def local(file: str | Path, name: str = "test_resnet") -> nn.Module:
    return build_model(ModelConfig(name=name, weights=str(file)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache and an empty torch cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the other tests run with True
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a loopback server in the place of huggingface.co."""
    servers: list[ThreadingHTTPServer] = []

    def start(handler: type[BaseHTTPRequestHandler]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return url


class Quiet(BaseHTTPRequestHandler):
    """Answers every request with `status` and keeps their list."""

    status: int
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        self.send_response(self.status)
        if self.status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD


def answering(code: int) -> type[Quiet]:
    class Handler(Quiet):
        status = code
        asked: list[str] = []  # noqa: RUF012

    return Handler


def test_the_log_says_what_the_model_starts_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="skindist")
    file = save(image_net("test_resnet"), tmp_path / "w.pth")
    build_model(ModelConfig(name="efficientnet_b0", pretrained=False))
    build_model(ModelConfig(name="test_resnet", weights=file))
    build_model(ModelConfig(name="efficientnet_b0"), load=False)
    lines = [record.getMessage() for record in caplog.records if record.name == "skindist"]
    # efficientnet_b0 has 5 288 548 parameters; 1000 classes become 2: less 998 * (1280 + 1) = 1 278 438.
    assert lines[0] == "model: efficientnet_b0, 4.01 M parameters, random weights, new zero head"
    assert f"backbone from {file} ({len(image_net('test_resnet')) - 2} tensors), new zero head" in lines[1]
    assert lines[2] == "model: efficientnet_b0, 4.01 M parameters, no weights loaded, new zero head"


# Local files


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_a_file_of_image_net_weights_fills_the_backbone(suffix: str, tmp_path: Path) -> None:
    state = image_net("test_resnet")
    model = local(save(state, tmp_path / f"w{suffix}"))
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state if not key.startswith("fc."))
    assert zero_head(model)


def test_a_head_of_our_shape_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="skindist")
    state = image_net("test_resnet", num_classes=2)
    loaded = local(save(state, tmp_path / "w.safetensors")).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert "head from the same file" in caplog.text


def test_a_file_without_a_head_leaves_ours_at_zero(tmp_path: Path) -> None:
    assert zero_head(local(save(image_net("test_resnet", num_classes=0), tmp_path / "w.pth")))


def test_the_discarded_distillation_head_may_be_in_the_file(tmp_path: Path) -> None:
    state = image_net("repvit_m0_9")
    assert any("head_dist" in key for key in state)
    loaded = local(save(state, tmp_path / "w.pth"), "repvit_m0_9").state_dict()
    assert torch.equal(loaded["stem.conv1.c.weight"], state["stem.conv1.c.weight"])


@pytest.mark.parametrize("nesting", ["state_dict", "model", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_nesting_and_prefixes(nesting: str, prefix: str, tmp_path: Path) -> None:
    state = image_net("test_resnet")
    wrapped = {prefix + key: tensor for key, tensor in state.items()}
    torch.save({"epoch": 3, "args": Namespace(lr=0.1), nesting: wrapped}, tmp_path / "w.pth")
    assert torch.equal(local(tmp_path / "w.pth").state_dict()["conv1.0.weight"], state["conv1.0.weight"])


def test_num_batches_tracked_may_be_absent(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in image_net("test_resnet").items() if "num_batches" not in key}
    loaded = local(save(state, tmp_path / "w.pth")).state_dict()
    assert torch.equal(loaded["conv1.0.weight"], state["conv1.0.weight"])


def test_keys_that_differ_are_listed(tmp_path: Path) -> None:
    state = image_net("test_resnet")
    del state["layer1.0.conv1.weight"]
    state["zebra"] = torch.zeros(1)
    width = len(state["bn1.weight"])
    state["bn1.weight"] = torch.zeros(7)
    with pytest.raises(UserError) as caught:
        local(save(state, tmp_path / "w.pth"))
    message = str(caught.value)
    assert f"--model.weights {tmp_path / 'w.pth'}: does not fit --model.name test_resnet" in message
    assert "1 missing (layer1.0.conv1.weight)" in message
    assert "1 unexpected (zebra)" in message
    assert f"1 of another shape (bn1.weight (7,) for ({width},))" in message
    assert "another model" in message
    assert "\n" not in message


def test_of_many_keys_five_are_listed(tmp_path: Path) -> None:
    state = image_net("test_resnet") | {f"zebra{i}": torch.zeros(1) for i in range(6)}
    with pytest.raises(UserError, match=r"6 unexpected \(zebra0, zebra1, zebra2, zebra3, zebra4, \.\.\.\)"):
        local(save(state, tmp_path / "w.pth"))


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.*unexpected"):
        local(save(image_net("test_vit"), tmp_path / "w.pth"))


def test_equal_keys_under_another_models_name_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Same keys and shapes, other padding: nothing but the name of the file can tell them apart.
    file = save(image_net("tf_efficientnet_b0"), tmp_path / "tf_efficientnet_b0.safetensors")
    local(file, "tf_efficientnet_b0")
    assert "is it not" not in caplog.text
    local(file, "efficientnet_b0")
    assert "is it not tf_efficientnet_b0?" in caplog.text


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("the file was unpickled",))


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Malicious()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="never unpickled"):
        local(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100)])
def test_a_corrupt_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"--model\.weights .*{name}: cannot be read") as caught:
        local(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.zeros(2), {"state_dict": {}}])
def test_a_file_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        local(tmp_path / "w.pth")


def test_missing_file_folder_and_unknown_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model\.weights .*none\.pth: no such file"):
        local(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder"):
        local(tmp_path)
    (tmp_path / "w.onnx").touch()
    with pytest.raises(UserError, match=r"must end in \.safetensors, \.pth, \.pt, \.bin"):
        local(tmp_path / "w.onnx")


def test_without_load_neither_file_nor_network_is_touched(hub: Start) -> None:
    handler = answering(404)
    hub(handler)
    for config in (ModelConfig(name="test_resnet"), ModelConfig(name="test_resnet", weights="none.pth")):
        assert zero_head(build_model(config, load=False))
    assert not handler.asked


# timm's pretrained weights


def fill(cache: Path, state: dict[str, Tensor], file: str = "model.safetensors") -> None:
    """Lay the weights of test_resnet into the cache as the Hub's client does."""
    folder = cache / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    (folder / "snapshots" / REVISION).mkdir(parents=True)
    save(state, folder / "snapshots" / REVISION / file)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_cached_weights_need_no_network(file: str, cache: Path, hub: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="skindist")
    state = image_net("test_resnet")
    fill(cache, state, file)
    handler = answering(404)
    hub(handler)
    model = build_model(ModelConfig(name="test_resnet"))
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state if not key.startswith("fc."))
    assert zero_head(model)
    assert not handler.asked
    assert "backbone from timm/test_resnet.r160_in1k, new zero head" in caplog.text


def test_cached_weights_that_lack_a_key_are_refused(cache: Path) -> None:
    state = image_net("test_resnet")
    del state["layer1.0.conv1.weight"]
    fill(cache, state)
    with pytest.raises(UserError, match=r"pretrained weights .*model\.safetensors cannot be loaded.*delete that file"):
        build_model(ModelConfig(name="test_resnet"))


def test_absent_weights_are_downloaded_once(hub: Start, tmp_path: Path) -> None:
    state = image_net("test_resnet")
    body = Path(save(state, tmp_path / "served.safetensors")).read_bytes()

    class Serving(Quiet):
        asked: list[str] = []  # noqa: RUF012

        def do_HEAD(self) -> None:
            self.asked.append(f"{self.command} {self.path}")
            self.send_response(200)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", '"abc"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(body)

    hub(Serving)
    for _ in range(2):
        loaded = build_model(ModelConfig(name="test_resnet")).state_dict()
        assert torch.equal(loaded["conv1.0.weight"], state["conv1.0.weight"])
    path = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    assert Serving.asked.count(f"GET {path}") == 1


def refusal(name: str = "test_resnet") -> str:
    """The message of the UserError that ends the attempt; the Hub's own client would go on for a minute."""
    begin = time.monotonic()
    with pytest.raises(UserError) as caught:
        build_model(ModelConfig(name=name))
    assert time.monotonic() - begin < 30
    message = str(caught.value)
    assert "--model.weights FILE" in message and "--model.pretrained false" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("status", [401, 404, 429, 503])
def test_a_server_that_refuses(status: int, hub: Start, caplog: pytest.LogCaptureFixture) -> None:
    hub(answering(status))
    assert "could not be fetched" in refusal()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_no_server_at_all(cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)
    assert "ConnectError" in refusal()
    assert not caplog.records


def test_a_server_that_never_answers(hub: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NETWORK_SECONDS", 0.3)
    release = threading.Event()

    class Hanging(Quiet):
        def do_HEAD(self) -> None:
            release.wait(60)

    hub(Hanging)
    assert "Time" in refusal()  # ReadTimeout of the client or TimeoutError of ours
    release.set()


def test_a_name_look_up_that_never_answers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NETWORK_SECONDS", 0.3)
    release = threading.Event()
    monkeypatch.setattr(module, "get_hf_file_metadata", lambda *_, **__: release.wait(60))
    assert "TimeoutError" in refusal()
    release.set()


def test_offline_mode(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "OfflineModeIsEnabled" in refusal()
    fill(cache, image_net("test_resnet"))
    build_model(ModelConfig(name="test_resnet"))


def test_old_models_at_a_plain_address(cache: Path, hub: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = timm.get_pretrained_cfg("test_resnet")
    assert cfg is not None
    cfg.hf_hub_id, cfg.url = None, hub(answering(404)) + "/weights.pth"
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: cfg)
    assert "404" in refusal()
    folder = cache.parent / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    state = image_net("test_resnet")
    save(state, folder / "weights.pth")
    loaded = build_model(ModelConfig(name="test_resnet")).state_dict()
    assert torch.equal(loaded["conv1.0.weight"], state["conv1.0.weight"])


def test_a_model_that_timm_has_no_weights_for() -> None:
    assert "no pretrained weights" in refusal("botnet50ts_256")
