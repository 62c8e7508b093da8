#!/usr/bin/env python3
"""PyTorch on a GPU as the measure for the CUDA kernels: limits of the device, Xception's separable layers, whole networks from timm.

    pytorch_gpu.py limits
    pytorch_gpu.py layers [--batch 32 64] [--dtype bf16 tf32 fp32]
    pytorch_gpu.py net    [--mode eager compile] [--batch 1 64] [--train-batch 64] [--model legacy_xception]

One JSON object per line on stdout. Medians by CUDA events; layers as calls captured in one CUDA graph, as sepconv measures its own, on
operands that rotate over more than the L2 cache. Channels-last, random data, cudnn.benchmark on. `--device cpu` takes tiny shapes and
only shows that the program runs.
"""
import argparse
import contextlib
import json
import statistics
import time

import torch
import torch.nn.functional as F

# Channels in and out, side, times in the network: src/bench/layers.ts.
LAYERS = [
    (64, 128, 147, 1),
    (128, 128, 147, 1),
    (128, 256, 74, 1),
    (256, 256, 74, 1),
    (256, 728, 37, 1),
    (728, 728, 37, 1),
    (728, 728, 19, 25),
    (728, 1024, 19, 1),
    (1024, 1536, 10, 1),
    (1536, 2048, 10, 1),
]
DTYPES = {'bf16': torch.bfloat16, 'tf32': torch.float32, 'fp32': torch.float32}


def say(**row):
    print(json.dumps(row), flush=True)


def use_dtype(name):
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == 'tf32'
    return DTYPES[name]


def median_ms(device, run, seconds=0.4, least=5):
    """Median milliseconds of run(i); i rises, so that operands can rotate."""
    for i in range(3):
        run(i)
    if device == 'cpu':
        times = []
        for i in range(least):
            since = time.perf_counter()
            run(i)
            times.append((time.perf_counter() - since) * 1e3)
        return statistics.median(times)
    torch.cuda.synchronize()
    since = time.perf_counter()
    run(0)
    torch.cuda.synchronize()
    count = max(least, min(200, int(seconds / max(time.perf_counter() - since, 1e-6))))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for i, (start, stop) in enumerate(events):
        start.record()
        run(i)
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in events)


def graphed_ms(device, run, calls):
    """Milliseconds per call of `calls` calls captured in one CUDA graph: launches cost nothing."""
    if device == 'cpu':
        return median_ms(device, run)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(3):
            run(i)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            run(i)
    return median_ms(device, lambda _: graph.replay(), 0.15) / calls


def limits(options):
    device = options.device
    if device != 'cpu':
        found = torch.cuda.get_device_properties(0)
        say(
            kind='device',
            name=found.name,
            multiprocessors=found.multi_processor_count,
            l2Bytes=getattr(found, 'L2_cache_size', None),
            memoryBytes=found.total_memory,
            torch=torch.__version__,
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
        )
    count = 2 ** (20 if device == 'cpu' else 31)
    x = torch.empty(count, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    ms = median_ms(device, lambda _: y.copy_(x))
    say(kind='copy', bytes=2 * count, ms=ms, gbps=2 * count / ms / 1e6)
    shapes = [(64, 64, 64)] if device == 'cpu' else [(8192, 8192, 8192), (23104, 728, 728), (11552, 728, 728)]
    for name in DTYPES:
        dtype = use_dtype(name)
        for m, n, k in shapes:
            a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
            ms = median_ms(device, lambda _: a @ b)
            say(kind='matmul', dtype=name, m=m, n=n, k=k, ms=ms, gflops=2 * m * n * k / ms / 1e6)


def layer(device, name, batch, cin, cout, side, times):
    dtype = use_dtype(name)
    last = torch.channels_last
    size = 2 if name == 'bf16' else 4
    pixels = batch * side * side
    l2 = 0 if device == 'cpu' else getattr(torch.cuda.get_device_properties(0), 'L2_cache_size', 50 << 20)
    sets = min(64, max(2, int(2.5 * l2 / (pixels * (cin + cout) * size)) + 1))

    def random(*shape):
        return torch.randn(*shape, device=device).to(dtype).contiguous(memory_format=last)

    xs = [random(batch, cin, side, side) for _ in range(sets)]
    filters = {'depthwise': random(cin, 1, 3, 3), 'pointwise': random(cout, cin, 1, 1), 'regular': random(cout, cin, 3, 3)}
    work = {'depthwise': 9 * cin, 'pointwise': cin * cout, 'regular': 9 * cin * cout, 'unfused': 9 * cin + cin * cout}
    rows = {}
    with torch.no_grad():
        for op, w in filters.items():
            groups, padding = (cin if op == 'depthwise' else 1), (0 if op == 'pointwise' else 1)
            dys = [random(batch, w.shape[0], side, side) for _ in range(sets)]

            def back(i, mask):
                where = ([1, 1], [padding, padding], [1, 1], False, [0, 0], groups, mask)
                return torch.ops.aten.convolution_backward(dys[i % sets], xs[i % sets], w, None, *where)

            runs = {
                'forward': lambda i: F.conv2d(xs[i % sets], w, padding=padding, groups=groups),
                'data': lambda i: back(i, [True, False, False]),
                'filter': lambda i: back(i, [False, True, False]),
            }
            for way, run in runs.items():
                rows[op, way] = graphed_ms(device, run, max(8, sets))

        def pair(i):
            middle = F.conv2d(xs[i % sets], filters['depthwise'], padding=1, groups=cin)
            return F.conv2d(middle, filters['pointwise'])

        rows['unfused', 'forward'] = graphed_ms(device, pair, max(8, sets))
    for (op, way), ms in rows.items():
        moved = pixels * (2 * cin if op == 'depthwise' else cin + cout) * size
        say(
            **{'kind': 'layer', 'op': op, 'pass': way, 'precision': name, 'batch': batch, 'layer': f'{cin}->{cout}@{side}'},
            **{'count': times, 'ms': ms, 'gbps': moved / ms / 1e6, 'gflops': 2 * pixels * work[op] / ms / 1e6},
        )


def layers(options):
    for name in options.dtype:
        for batch in options.batch or [32]:
            for cin, cout, side, times in LAYERS[:1] if options.device == 'cpu' else LAYERS:
                layer(options.device, name, batch, cin, cout, 5 if options.device == 'cpu' else side, times)


def net(options):
    import timm

    device = options.device
    size = 75 if device == 'cpu' else 299
    for model in options.model:
        for mode in options.mode:
            for name in options.dtype:
                dtype = use_dtype(name)
                common = {'kind': 'net', 'model': model, 'mode': mode, 'precision': name}

                def report(task, batch, body):
                    since = time.time()
                    try:
                        ms = median_ms(device, body, 1.0)
                    except Exception as error:
                        return say(**common, task=task, batch=batch, error=str(error)[:300])
                    seconds = round(time.time() - since, 1)
                    return say(**common, task=task, batch=batch, ms=ms, imagesPerSecond=batch / ms * 1e3, prepareSeconds=seconds)

                for batch in options.batch or [1, 64]:
                    net_ = timm.create_model(model, num_classes=1000).to(device).eval().to(dtype)
                    net_ = net_.to(memory_format=torch.channels_last)
                    run = torch.compile(net_, mode='max-autotune') if mode == 'compile' else net_
                    xs = [torch.randn(batch, 3, size, size, device=device).to(dtype) for _ in range(2)]
                    xs = [x.contiguous(memory_format=torch.channels_last) for x in xs]
                    with torch.inference_mode():
                        report('inference', batch, lambda i: run(xs[i % 2]))
                for batch in options.train_batch:
                    net_ = timm.create_model(model, num_classes=1000).to(device).train().to(memory_format=torch.channels_last)
                    optimizer = torch.optim.SGD(net_.parameters(), 0.01, momentum=0.9, weight_decay=1e-5)
                    run = torch.compile(net_) if mode == 'compile' else net_
                    x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
                    y = torch.randint(0, 1000, (batch,), device=device)
                    amp = torch.autocast(device, torch.bfloat16) if name == 'bf16' else contextlib.nullcontext()

                    def step(_):
                        optimizer.zero_grad(set_to_none=True)
                        with amp:
                            logits = run(x)
                            loss = F.cross_entropy((logits[0] if isinstance(logits, tuple) else logits).float(), y)
                        loss.backward()
                        optimizer.step()

                    report('train', batch, step)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['limits', 'layers', 'net'])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--batch', type=int, nargs='+')
    parser.add_argument('--train-batch', type=int, nargs='*', default=[64])
    parser.add_argument('--dtype', nargs='+', choices=list(DTYPES), default=['bf16', 'tf32'])
    parser.add_argument('--mode', nargs='+', choices=['eager', 'compile'], default=['eager', 'compile'])
    parser.add_argument('--model', nargs='+', default=['legacy_xception'])
    options = parser.parse_args()
    {'limits': limits, 'layers': layers, 'net': net}[options.what](options)


main()
