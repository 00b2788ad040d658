// Room for a new node on the canvas: beside another one, without covering any.

import { nodesOf } from "./graph_links.js"

export const GAP = 40
export const TITLE = 30 // of a node, above its position

/** Puts a node to the right of another; what is there makes room, but for branches, below which it goes. */
export function placeRight(node, other, branches) {
    const { left, width } = box(other)
    const right = left + width
    node.pos = [right + GAP, other.pos[1]]
    if (!branches && covered(node)) makeRoom(node, right, node.size[0] + GAP)
    lower(node) // below other branches, and below what is pinned
    for (const group of groupsOf(node.graph)) if (!group.pinned && holds(group, other)) reach(group, node, other)
}

/** Puts a node below another. */
export function placeBelow(node, other) {
    node.pos = [other.pos[0], other.pos[1] + other.size[1] + GAP + TITLE]
    lower(node)
}

function lower(node) {
    for (let other = covered(node); other; other = covered(node)) {
        node.pos = [node.pos[0], box(other).bottom + GAP + TITLE]
    }
}

/** Moves everything that begins right of `edge` and is not pinned, and the right side of groups that reach over it. */
function makeRoom(node, edge, width) {
    const right = other => (other.pos = [other.pos[0] + width, other.pos[1]])
    const others = nodesOf(node.graph).filter(other => other !== node && !other.flags?.pinned)
    const movable = [...others, ...(node.graph.reroutes?.values() ?? [])]
    movable.filter(other => other.pos[0] >= edge).forEach(right)
    for (const group of groupsOf(node.graph).filter(group => !group.pinned)) {
        if (group.pos[0] >= edge) right(group)
        else if (group.pos[0] + group.size[0] > edge) group.size = [group.size[0] + width, group.size[1]]
    }
}

/** A node that covers this one. */
function covered(node) {
    const mine = box(node)
    return nodesOf(node.graph).find(other => {
        const theirs = box(other)
        const beside = mine.left + mine.width <= theirs.left || theirs.left + theirs.width <= mine.left
        return other !== node && !beside && mine.top < theirs.bottom && theirs.top < mine.bottom
    })
}

/** Where a node is drawn: of a collapsed one there is but its title. */
function box(node) {
    const [left, y] = node.pos
    const collapsed = node.flags?.collapsed
    const width = collapsed ? node._collapsed_width || LiteGraph.NODE_COLLAPSED_WIDTH : node.size[0]
    return { left, width, top: y - TITLE, bottom: collapsed ? y : y + node.size[1] }
}

function groupsOf(graph) {
    return graph.groups ?? graph._groups
}

function holds(group, node) {
    const { left, width, top, bottom } = box(node)
    return [left + width / 2, (top + bottom) / 2].every(
        (middle, axis) => group.pos[axis] <= middle && middle <= group.pos[axis] + group.size[axis],
    )
}

/** Stretches a group over a new node with the margins that it has around the old one. */
function reach(group, node, other) {
    const old = box(other)
    const ends = [old.left + old.width, old.bottom]
    group.size = [0, 1].map(axis => {
        const margin = Math.min(group.pos[axis] + group.size[axis] - ends[axis], GAP)
        return Math.max(group.size[axis], node.pos[axis] + node.size[axis] + margin - group.pos[axis])
    })
}
