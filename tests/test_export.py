"""ONNX files: onnxruntime predicts what torch predicts, in float32 exactly enough and in int8 nearly."""

import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from kdlib import export
from kdlib.cost import latency, prediction_cost
from kdlib.errors import KDError
from kdlib.training import predict_logits


class Pictures(nn.Module):
    """Bytes in, as the networks of the replications."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 36, 4)
        )

    def forward(self, x):
        return self.layers(x.float() / 255)


@pytest.fixture(scope="module")
def inputs():
    return torch.randint(256, (70, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(inputs):
    torch.manual_seed(2)
    made = Pictures()
    for _ in range(20):
        made(inputs)  # moving averages that are not 0 and 1
    return made


@pytest.fixture(scope="module")
def file(model, inputs, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export.onnx_file(model, inputs[:5], str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 5, 70])
def test_any_number_of_examples_gets_the_logits_of_torch(file, model, inputs, count):
    found = export.onnx_predictor(str(file))(inputs[:count])
    expected = predict_logits(model, inputs[:count])
    assert found.shape == (count, 4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_file_says_its_opset_and_the_names_and_types_of_its_ends(file):
    made = onnx.load(file)
    assert {entry.domain: entry.version for entry in made.opset_import}[""] == export.OPSET
    (first,), (last,) = made.graph.input, made.graph.output
    assert (first.name, last.name) == ("inputs", "logits")
    assert first.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert "Dropout" not in {node.op_type for node in made.graph.node}


def test_the_files_hold_no_path_of_this_machine(file, inputs, tmp_path):
    export.int8_file(file, inputs, tmp_path / "int8.onnx")
    for path in (file, tmp_path / "int8.onnx"):
        content = path.read_bytes()
        assert b"stack_trace" not in content
        assert str(Path(__file__).parents[1]).encode() not in content
    assert file.stat().st_size < 4 * (8 * 9 + 4 * 8 + 8 * 36 * 4 + 4) + 4_000  # the numbers, and little more


def test_the_network_stays_in_training_mode(file, model):
    assert model.training
    assert all(module.training for module in model.modules())


def test_int8_is_smaller_and_predicts_nearly_the_same(file, model, inputs, tmp_path):
    path = tmp_path / "int8.onnx"
    how = export.int8_file(file, inputs, path)
    assert how == "static, 70 examples"
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert path.stat().st_size < file.stat().st_size
    expected, found = predict_logits(model, inputs), export.onnx_predictor(path)(inputs)
    assert 0 < float((expected - found).abs().max()) < 0.05 * float(expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("off", [1e-3, float("nan")])
def test_other_logits_are_refused_and_nothing_is_written(model, inputs, tmp_path, monkeypatch, off):
    right = export._predicted
    monkeypatch.setattr(export, "_predicted", lambda *given: right(*given) + off)
    with pytest.raises(KDError, match=r"expected onnxruntime's logits within .* of torch's, found a difference"):
        export.onnx_file(model, inputs[:3], tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda model: model.bfloat16(),
            r"a network in float32, found logits in torch\.bfloat16; export module\.float",
        ),
        (lambda model: model.layers[-1].weight.data.fill_(torch.nan), "finite logits of these examples, found NaN"),
    ],
)
def test_a_network_whose_file_would_be_wrong_is_told(inputs, tmp_path, change, said):
    model = Pictures()
    model.forward = lambda x: model.layers((x / 255).to(model.layers[0].weight))
    change(model)
    with pytest.raises(KDError, match=said):
        export.onnx_file(model, inputs[:5], tmp_path / "model.onnx")
    assert [*tmp_path.iterdir()] == []


def test_a_network_of_several_outputs_is_told_what_to_export(inputs, tmp_path):
    model = Pictures()
    model.forward = lambda x: {"logits": model.layers(x.float() / 255)}
    with pytest.raises(KDError, match="outputs of Pictures: expected Tensor, found dict; export a module around it"):
        export.onnx_file(model, inputs[:5], tmp_path / "model.onnx")


def test_the_tolerance_grows_with_the_logits():
    logits = torch.tensor([[200.0, -3.0]])
    export.same_logits(logits, logits + 0.015)
    with pytest.raises(KDError, match=r"found a difference of 0\.025"):
        export.same_logits(logits, logits + 0.025)


def test_a_missing_package_is_named(model, inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(KDError, match=r"onnxruntime.*pip install 'kdlib\[export\]'"):
        export.onnx_file(model, inputs, tmp_path / "model.onnx")


# ---- what is nearly right


class Rows(nn.Module):
    """Counts its rows in a way that torch.export takes for a constant."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x.view(len(x), -1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_wrapped_network_is_exported_without_its_wrapper(tmp_path, wrap):
    network = nn.Linear(4, 3)
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    export.onnx_file(wrap(network), inputs.double().numpy(), tmp_path / "m.onnx")
    found = export.onnx_predictor(tmp_path / "m.onnx")(inputs)
    torch.testing.assert_close(found, predict_logits(network, inputs), rtol=0, atol=1e-5)


def test_inputs_and_networks_that_cannot_be_exported_are_told(tmp_path):
    inputs = torch.ones(5, 4)
    for wrong, told in (
        (inputs[:0], r"at least one example, found shape \(0, 4\)"),
        (torch.ones(5, 6), r"inputs that Linear takes, found torch.float32 of shape \(\d, 6\): mat1 and mat2"),
        (inputs.double(), r"inputs that Linear takes, found torch.float64"),
    ):
        with pytest.raises(KDError, match=told):
            export.onnx_file(nn.Linear(4, 3), wrong, tmp_path / "m.onnx")
        with pytest.raises(KDError, match=told):
            prediction_cost(nn.Linear(4, 3), wrong[:1])
    with pytest.raises(KDError, match=r"takes one number of examples; write x\.shape\[0\] there, not len\(x\)"):
        export.onnx_file(Rows(), inputs, tmp_path / "m.onnx")
    assert not [*tmp_path.iterdir()]
    assert prediction_cost(nn.Linear(4, 3), inputs[:1].double().numpy()).flops == 24


def test_int8_needs_finite_examples(file, inputs, tmp_path):
    broken = torch.full((3, 1, 8, 8), torch.nan)
    for wrong, told in ((inputs[:0], "found none"), (broken, "found NaN or infinite ones")):
        with pytest.raises(KDError, match=told):
            export.int8_file(file, wrong, tmp_path / "int8.onnx")


def test_a_latency_of_fewer_than_no_predictions_is_refused():
    for wrong in (-1, 1.5):
        with pytest.raises(KDError, match="warm_up"):
            latency(lambda: None, warm_up=wrong)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float64", "recurrent"])
def test_a_file_without_weights_in_8_bits_is_no_int8_file(tmp_path, kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(6, 16, batch_first=True)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.layer(x)[0][:, -1])

    torch.manual_seed(0)
    if kind == "recurrent":
        model, inputs = Recurrent(), torch.randn(20, 5, 6)
    else:
        model, inputs = nn.Linear(6, 4).double(), torch.randn(20, 6, dtype=torch.float64)
    source, path = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    export.onnx_file(model, inputs, source)
    if kind == "recurrent":  # of 6 * 64 + 16 * 64 + 16 * 4 weights, the last ones
        assert export.int8_file(source, inputs, path) == "static, 20 examples, 4% of the weights in 8 bits"
    else:
        with pytest.raises(KDError, match="expected layers that onnxruntime can quantise, found none"):
            export.int8_file(source, inputs, path)
        assert not path.exists()


def test_a_network_that_draws_in_evaluation_mode_is_told(tmp_path):
    class Draws(nn.Linear):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5)

    torch.manual_seed(0)
    with pytest.raises(KDError, match=r"the network draws random numbers; give its dropout `training=self.training`"):
        export.onnx_file(Draws(4, 3), torch.randn(8, 4), tmp_path / "model.onnx")


@pytest.mark.slow
def test_examples_may_have_a_gradient(tmp_path):
    inputs = torch.randn(8, 4, requires_grad=True)
    export.onnx_file(nn.Linear(4, 3), inputs, tmp_path / "model.onnx")
    assert export.int8_file(tmp_path / "model.onnx", inputs, tmp_path / "int8.onnx") == "static, 8 examples"
    assert export.onnx_predictor(tmp_path / "int8.onnx")(inputs).shape == (8, 3)


def test_files_and_inputs_that_onnxruntime_does_not_take_are_told(file, inputs, tmp_path):
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"no ONNX file")
    for call in (lambda path: export.onnx_predictor(path), lambda path: export.int8_file(path, inputs, tmp_path / "8")):
        with pytest.raises(KDError, match="expected an ONNX file, found one that onnxruntime does not take"):
            call(junk)
        with pytest.raises(KDError, match=r"none\.onnx"):
            call(tmp_path / "none.onnx")
    predict = export.onnx_predictor(file)
    for wrong in (inputs.double(), inputs[:, :, 1:]):
        with pytest.raises(KDError, match="expected inputs that the ONNX file takes, found torch"):
            predict(wrong)
        with pytest.raises(KDError, match="expected inputs that the ONNX file takes, found torch"):
            export.int8_file(file, wrong, tmp_path / "8")
    assert torch.equal(predict(inputs.numpy()), predict(inputs))
    assert not (tmp_path / "8").exists()
