// Links of a graph as an artist means them: through Reroute nodes and through Set/Get nodes, which carry a link by name.
// Reroute points on a link are no nodes: LiteGraph's links lead past them by themselves.

const REROUTE = "Reroute"
const SET = /^Set(Node)?$/i
const GET = /^Get(Node)?$/i

/** The node and its output that feed the input `name`, if there are any. */
export function sourceOf(node, name) {
    const slot = node.findInputSlot(name)
    return slot < 0 ? null : sourceOfSlot(node, slot, new Set())
}

/** The nodes that an output is wired to, each with its input slot. */
export function usersOf(node, output) {
    const links = (node.outputs[output].links ?? []).map(id => node.graph.getLink(id)).filter(Boolean)
    return links
        .map(link => ({ node: node.graph.getNodeById(link.target_id), slot: link.target_slot }))
        .filter(user => user.node) // a subgraph's own output is no node
}

/** The nodes in the end of the wires that begin at a user: itself, or what lies behind a Reroute or a Set node. */
export function reached(user, seen = new Set()) {
    const { node } = user
    if (seen.has(node)) return []
    seen.add(node)
    const carriers = node.type === REROUTE ? [node] : SET.test(node.type) ? getters(node) : null
    return carriers ? carriers.flatMap(at => usersOf(at, 0)).flatMap(next => reached(next, seen)) : [node]
}

export function nodesOf(graph) {
    return graph.nodes ?? graph._nodes
}

function sourceOfSlot(node, slot, seen) {
    const link = node.graph.getLink(node.inputs[slot]?.link)
    const source = link && node.graph.getNodeById(link.origin_id) // none for a subgraph's own input
    if (!source || seen.has(source)) return null
    seen.add(source)
    if (source.type === REROUTE) return sourceOfSlot(source, 0, seen)
    if (GET.test(source.type)) {
        const setter = nodesOf(node.graph).find(other => SET.test(other.type) && carried(other) === carried(source))
        return setter ? sourceOfSlot(setter, 0, seen) : null
    }
    return { node: source, slot: link.origin_slot }
}

function getters(setter) {
    return nodesOf(setter.graph).filter(other => GET.test(other.type) && carried(other) === carried(setter))
}

/** The name under which a Set or Get node carries its link. */
function carried(node) {
    return node.widgets?.[0]?.value
}
