// Links of a graph as an artist means them: through Reroute nodes, through Set/Get nodes, which carry a link by name,
// and through the border of a subgraph. Reroute points on a link are no nodes: LiteGraph's links lead past them.

const SET = /^(easy )?set(node)?$/i // of KJNodes and Easy-Use
const GET = /^(easy )?get(node)?$/i

/** The node and its output that feed the input `name`, if there are any. */
export function sourceOf(node, name) {
    return sourceOfSlot(node, node.findInputSlot(name), new Set())
}

/** The ends of the links from an output: `node` and `slot`, or the `border` slot of a subgraph; and the last reroute. */
export function usersOf(node, output) {
    return endsOf(node.graph, node.outputs[output].links)
}

/** The nodes at the end of the way that begins at a user. */
export function reached(user, seen = new Set()) {
    const { node, border } = user
    const key = node ?? border
    if (seen.has(key)) return []
    seen.add(key)
    const next = border ? outside(border) : behind(node, user.slot)
    return next ? next.flatMap(other => reached(other, seen)) : [node]
}

/** Lets a user hang on another output; the reroutes on its link stay. */
export function rewire(user, node, output) {
    if (user.border) user.border.connect(node.outputs[output], node, user.reroute)
    else node.connect(output, user.node, user.slot, user.reroute)
}

export function nodesOf(graph) {
    return graph.nodes ?? graph._nodes
}

function endsOf(graph, links) {
    const found = [...(links ?? [])].map(id => graph.getLink(id)).filter(Boolean)
    const end = ({ target_id, target_slot, parentId }) => {
        const border = target_id === graph.outputNode?.id ? graph.outputs[target_slot] : null
        return { node: border ? null : graph.getNodeById(target_id), slot: target_slot, border, reroute: parentId }
    }
    return found.map(end).filter(user => user.node || user.border)
}

/** Where a node hands on what it is given, or null if it takes it itself. */
function behind(node, slot) {
    if (node.subgraph) {
        const inner = node.subgraph.inputs.find(input => input.name === node.inputs[slot].name)
        return endsOf(node.subgraph, inner?.linkIds)
    }
    if (!hands(node)) return null
    return [node, ...(SET.test(node.type) ? getters(node) : [])].flatMap(at => (at.outputs?.length ? usersOf(at, 0) : []))
}

/** Who takes an output of a subgraph, in all of the graphs that hold it. */
function outside(border) {
    const { subgraph } = border.parent
    return instances(subgraph).flatMap(node => usersOf(node, node.outputs.findIndex(output => output.name === border.name)))
}

function sourceOfSlot(node, slot, seen) {
    const link = slot < 0 ? null : node.graph.getLink(node.inputs[slot]?.link)
    return link ? origin(node.graph, link, seen) : null
}

function origin(graph, link, seen) {
    if (seen.has(link)) return null
    seen.add(link)
    if (link.origin_id === graph.inputNode?.id) {
        const [outer] = instances(graph)
        return outer ? sourceOfSlot(outer, outer.findInputSlot(graph.inputs[link.origin_slot].name), seen) : null
    }
    const node = graph.getNodeById(link.origin_id)
    if (!node) return null
    if (node.subgraph) {
        const inner = node.subgraph.outputs.find(output => output.name === node.outputs[link.origin_slot].name)
        const next = node.subgraph.getLink(inner?.linkIds[0])
        return next ? origin(node.subgraph, next, seen) : null
    }
    if (GET.test(node.type)) {
        const setter = setterOf(node)
        return setter ? sourceOfSlot(setter, 0, seen) : null
    }
    return hands(node) ? sourceOfSlot(node, 0, seen) : { node, slot: link.origin_slot }
}

/** Whether a node does nothing but hand on its one input. */
function hands(node) {
    return node.type === "Reroute" || (Boolean(node.isVirtualNode) && node.inputs?.length === 1)
}

function getters(setter) {
    const inside = [setter.graph, ...graphsOf(setter.graph)].filter((graph, index, all) => all.indexOf(graph) === index)
    const getters = inside.flatMap(nodesOf).filter(node => GET.test(node.type))
    return getters.filter(getter => setterOf(getter) === setter)
}

/** The Set node of a Get node: in its own graph, or else in one that holds it. */
function setterOf(getter) {
    for (let { graph } = getter; graph; graph = instances(graph)[0]?.graph) {
        const setter = nodesOf(graph).find(other => SET.test(other.type) && carried(other) === carried(getter))
        if (setter) return setter
    }
    return null
}

/** The name under which a Set or Get node carries its link. */
function carried(node) {
    return node.widgets?.[0]?.value
}

/** The nodes that stand for a subgraph. */
function instances(subgraph) {
    return graphsOf(subgraph).flatMap(nodesOf).filter(node => node.subgraph === subgraph)
}

/** The graph of the workflow and those of its subgraphs. */
function graphsOf(graph) {
    const root = graph.rootGraph ?? graph
    return [root, ...(root.subgraphs?.values() ?? [])]
}
