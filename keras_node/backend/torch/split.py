"""The split of a PyTorch graph in two."""

from collections.abc import Callable

from torch import fx


def split(
    module: fx.GraphModule, num_inputs: int, num_outputs: int
) -> tuple[Callable, Callable]:
    """Splits a graph in two, the second to be called after the first.

    The first takes the first `num_inputs` inputs. It returns the first
    `num_outputs` outputs and then the saved tensors. The second takes the saved
    tensors and then the other inputs. It returns the other outputs.
    """
    nodes = list(module.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    (outputs,) = module.graph.output_node().args
    second = set(inputs[num_inputs:])
    for node in nodes:
        if node.op != "output" and second.intersection(node.all_input_nodes):
            second.add(node)
    last = module.graph.output_node()
    saved = [
        node
        for node in nodes
        if node not in second
        and node.op in ("placeholder", "call_function")
        and (
            second.intersection(node.users)
            or (last in node.users and node in outputs[num_outputs:])
        )
    ]

    def part(inputs, outputs, left_out):
        graph, copies = fx.Graph(), {}
        for node in inputs:
            copies[node] = graph.placeholder(node.name)
        for node in nodes:
            if node.op in ("call_function", "get_attr"):
                if node not in copies and node not in left_out:
                    copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output([copies.get(node, node) for node in outputs])
        graph.eliminate_dead_code()
        return fx.GraphModule(module, graph).forward

    calls = {node for node in nodes if node.op == "call_function"}
    return (
        part(inputs[:num_inputs], [*outputs[:num_outputs], *saved], second),
        part(
            [*saved, *inputs[num_inputs:]],
            outputs[num_outputs:],
            calls - second,
        ),
    )
