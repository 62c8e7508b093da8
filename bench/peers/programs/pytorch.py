# PyTorch at its best. Inference: traced, frozen and optimised for inference (batch norm folded, weights packed by oneDNN). Training: memory
# format channels_last. Layers: oneDNN's blocked layout on both sides, so that no time goes into converting. The environment does the rest
# (peers.mjs): threads of OpenMP and of the BLAS, the BLAS's kernels, malloc without mmap. The protocol is serve.mjs'.

import json
import mmap
import os
import re
import resource
import sys
import time

import torch
import torch.nn.functional as F
import torch.utils.mkldnn

replies = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def read_network(folder):
    """The plan and its weights, views of the mapped file."""
    with open(os.path.join(folder, "plan.json")) as file:
        plan = json.load(file)
    with open(os.path.join(folder, "weights.safetensors"), "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    weights = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = torch.frombuffer(data, dtype=torch.float32, count=(end - begin) // 4, offset=8 + length + begin)
        weights[name] = values.reshape(entry["shape"])
    return plan, weights


def read_images(folder, batch, shape):
    h, w, c = shape
    values = torch.from_file(os.path.join(folder, "images.f32"), size=batch * h * w * c)
    return values.reshape(batch, h, w, c).permute(0, 3, 1, 2).contiguous()


class Network(torch.nn.Module):
    """The plan as a module, one child per op with parameters."""

    def __init__(self, plan, weights):
        super().__init__()
        self.nodes = plan["nodes"]
        self.ops = torch.nn.ModuleList(self.op(node, plan, weights) for node in self.nodes)

    def op(self, node, plan, weights):
        kind = node["op"]
        if kind in ("conv", "depthwise", "pointwise") and len(node["shape"]) == 3:
            return self.convolution(node, weights[node["filter"]])
        if kind == "pointwise":
            cin, cout = weights[node["filter"]].shape
            op = torch.nn.Linear(cin, cout, bias="bias" in node)
            fill(op.weight, weights[node["filter"]].t())
            if "bias" in node:
                fill(op.bias, weights[node["bias"]])
            return op
        if kind == "batchNorm":
            # PyTorch's momentum is the share that is replaced.
            op = torch.nn.BatchNorm2d(node["shape"][-1], node["epsilon"], 1 - plan["momentum"])
            fill(op.weight, weights[node["gamma"]])
            fill(op.bias, weights[node["beta"]])
            fill(op.running_mean, weights[node["mean"]])
            fill(op.running_var, weights[node["variance"]])
            return op
        if kind == "maxPool":
            top, bottom, left, right = node["padding"]
            if (top, left) == (bottom, right):
                return torch.nn.MaxPool2d(node["window"], node["strides"], (top, left))
            # A row and a column after the last ones only: windows that stick out.
            assert (top, bottom, left, right) == (0, 1, 0, 1)
            return torch.nn.MaxPool2d(node["window"], node["strides"], ceil_mode=True)
        return torch.nn.ReLU() if kind == "relu" else torch.nn.Identity()

    def convolution(self, node, values):
        if node["op"] == "pointwise":
            values = values[None, None]
        kh, kw, cin, cout = values.shape
        depthwise = node["op"] == "depthwise"
        top, bottom, left, right = node.get("padding", [0, 0, 0, 0])
        assert (top, left) == (bottom, right) and not (depthwise and cout != 1)
        op = torch.nn.Conv2d(
            cin, cin if depthwise else cout, (kh, kw), node.get("strides", 1), (top, left), groups=cin if depthwise else 1, bias=False
        )
        fill(op.weight, values.permute(2, 3, 0, 1) if depthwise else values.permute(3, 2, 0, 1))
        return op

    def forward(self, images):
        values = [images]
        last = {place: i for i, node in enumerate(self.nodes) for place in node["inputs"]}
        for i, (node, op) in enumerate(zip(self.nodes, self.ops)):
            inputs = [values[place] for place in node["inputs"]]
            if node["op"] == "add":
                value = inputs[0] + inputs[1]
            elif node["op"] == "mean":
                value = inputs[0].mean((2, 3))
            else:
                value = op(*inputs)
            values.append(value)
            del inputs
            for place in node["inputs"]:
                if last[place] == i:
                    values[place] = None
        return values[-1]


def fill(target, values):
    with torch.no_grad():
        target.copy_(values)


def channels_last(value):
    return value.permute(0, 2, 3, 1) if value.dim() == 4 else value


def inference(network, batch):
    plan, weights = read_network(network)
    images = read_images(network, batch, plan["input"])
    with torch.no_grad():
        traced = torch.jit.trace(Network(plan, weights).eval(), images)
        module = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
        del traced
        # The first runs let the executor specialise on the shape.
        for _ in range(3):
            output = module(images)

    def run():
        with torch.no_grad():
            module(images)

    return {"output": channels_last(output)}, run


def layer(network, batch):
    plan, weights = read_network(network)
    images = read_images(network, batch, plan["input"]).to_mkldnn()
    with torch.no_grad():
        modules = [torch.utils.mkldnn.to_mkldnn(op.eval()) for op in Network(plan, weights).ops]

    def run():
        with torch.no_grad():
            value = images
            for module in modules:
                value = module(value)
            return value

    return {"output": channels_last(run().to_dense())}, run


def train(network, batch, settings):
    plan, weights = read_network(network)
    classes = plan["classes"]
    images = read_images(network, batch, plan["input"]).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor([37 * i % classes for i in range(batch)])
    module = Network(plan, weights).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=settings["rate"], momentum=settings["momentum"], foreach=True)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(module(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def tracked(name):
        for node, op in zip(module.nodes, module.ops):
            if node.get("filter") == name:
                # The plan's layout again: [kh, kw, in, out].
                return op.weight.detach().permute(2, 3, 1, 0).contiguous().clone()
            if node.get("bias") == name:
                return op.bias.detach().clone()
        raise KeyError(name)

    before = {name: tracked(name) for name in settings["tracked"]}
    losses = [run()]
    changes = {f"change of {name}": tracked(name) - value for name, value in before.items()}
    while len(losses) < settings["steps"]:
        losses.append(run())
    return {"losses": torch.tensor(losses), **changes}, run


def prepare(request):
    task, network, batch = request["task"], request["network"], request["batch"]
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    if task == "train":
        return train(network, batch, request["training"])
    return {"inference": inference, "layer": layer}[task](network, batch)


def peak_bytes():
    """Linux counts per program; getrusage would also count what the parent held before it started this one."""
    try:
        with open("/proc/self/status") as file:
            return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def blas():
    """The library behind BLAS is whatever the system's alternative is: reference BLAS would be many times slower than OpenBLAS."""
    try:
        with open("/proc/self/maps") as file:
            found = re.search(r"/([\w-]+/lib(openblas|mkl|blis|blas)\S*)", file.read())
            return found[1] if found else "unknown"
    except OSError:
        return "unknown"


def main():
    run = None
    versions = {"torch": torch.__version__, "python": sys.version.split()[0], "blas": blas()}
    print(json.dumps({"ready": True, "versions": versions}), file=replies)
    for line in sys.stdin:
        request = json.loads(line)
        reply = {"id": request["id"]}
        try:
            if request["command"] == "prepare":
                outputs, run = prepare(request)
                reply["outputs"] = {}
                for name, value in outputs.items():
                    file = reply["outputs"][name] = os.path.join(request["out"], name + ".f32")
                    value.contiguous().numpy().astype("float32").tofile(file)
            elif request["command"] == "run":
                for _ in range(request["warm"]):
                    run()
                times = []
                for _ in range(request["count"]):
                    since = time.perf_counter()
                    run()
                    times.append((time.perf_counter() - since) * 1000)
                reply["ms"] = times
            elif request["command"] == "memory":
                reply["peakBytes"] = peak_bytes()
        except Exception as error:
            reply["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(reply), file=replies)


main()
