// "Next turn": a Turn to the right of a node that gives a session, wired to it and ready to be typed into.

import { app } from "../../scripts/app.js"
import { nodesOf, reached, sourceOf, usersOf } from "./graph_links.js"
import { word } from "./words.js"

const TURN = "AnchorEditTurn"
const SESSION = "ANCHOR_MEMORY"
const COPIED = ["seed", "steps", "cfg"]
const BACK = ["session", "variations"] // inputs by which a node hangs on the turn before
// What shows or saves the newest turn goes along; every other node that takes the session goes its own way.
const FOLLOWERS = ["AnchorEditFilmstrip", "AnchorEditDrift", "AnchorEditSaveSession", "AnchorEditExportTurns"]
const TURN_SIZE = [340, 500] // with the preview that the host draws while a turn is made
const GAP = 40
const TITLE = 30 // of a node, above its position
const FRAMES = 60 // to wait for the field that the host draws

export function givesSession(node) {
    return sessionOutput(node) >= 0
}

export function addNextTurnButton(node) {
    const widget = node.addWidget("button", "next_turn", null, () => addTurnAfter(node), { serialize: false })
    widget.label = word("nextTurn")
    widget.tooltip = word("nextTurnTooltip")
    widget.serialize = false
    const [width, height] = node.computeSize()
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
}

/** The same in the node's menu, which a collapsed node has too. */
export function nextTurnMenuItem(node) {
    return { content: word("nextTurn"), callback: () => addTurnAfter(node) }
}

/** Adds a Turn on the session that `node` gives, in one step of undo, and returns it. */
export function addTurnAfter(node) {
    const { canvas } = app
    canvas.emitBeforeChange()
    try {
        const turn = newTurn(node)
        canvas.selectNode(turn, false)
        if (!inView(turn, canvas)) canvas.centerOnNode(turn)
        typeInto(turn, "instruction", FRAMES)
        return turn
    } finally {
        canvas.emitAfterChange()
        canvas.setDirty(true, true)
    }
}

function newTurn(node) {
    const { graph } = node
    const output = sessionOutput(node)
    const users = usersOf(node, output)
    const branches = users.some(user => reached(user).some(other => !FOLLOWERS.includes(other.type)))
    const turn = LiteGraph.createNode(TURN)
    graph.add(turn)
    const like = node.type === TURN
    turn.setSize(like ? [node.size[0], Math.max(node.size[1], TURN_SIZE[1])] : [...TURN_SIZE])
    if (like && /\d+$/.test(node.title)) turn.title = node.title.replace(/\d+$/, number => Number(number) + 1)
    place(turn, node, branches)

    node.connect(output, turn, turn.findInputSlot("session"))
    for (const name of COPIED) {
        const like = [...upstream(node)].map(before => widgetOf(before, name)).find(Boolean)
        if (like) widgetOf(turn, name).value = like.value
    }
    // a finished turn stays as it is, so that queueing again computes only what is new
    const control = widgetOf(turn, "control_after_generate")
    if (control) control.value = "fixed"

    if (!branches) for (const user of users) turn.connect(sessionOutput(turn), user.node, user.slot)
    if (branches || !users.length) addPreview(turn)
    return turn
}

/** Something has to want a turn, or the host does not compute it. */
function addPreview(turn) {
    const preview = LiteGraph.createNode("PreviewImage")
    turn.graph.add(preview)
    preview.setSize([turn.size[0], turn.size[0]])
    preview.pos = [turn.pos[0], turn.pos[1] + turn.size[1] + GAP + TITLE]
    lower(preview)
    turn.connect(turn.outputs.findIndex(output => output.type === "IMAGE"), preview, 0)
}

/** To the right of `node`; what is there makes room, but for other branches, below which it goes. */
function place(turn, node, branches) {
    const right = node.pos[0] + node.size[0]
    turn.pos = [right + GAP, node.pos[1]]
    if (branches) lower(turn)
    else if (covered(turn)) {
        makeRoom(turn, right, turn.size[0] + GAP)
        lower(turn) // below what is pinned there
    }
    for (const group of groupsOf(node.graph)) if (holds(group, node)) reach(group, turn, node)
}

/** Stretches a group over a new node with the margins that it has around the old one. */
function reach(group, turn, node) {
    const sides = [0, 1].map(axis => {
        const margin = group.pos[axis] + group.size[axis] - node.pos[axis] - node.size[axis]
        const needed = turn.pos[axis] + turn.size[axis] + Math.min(margin, GAP) - group.pos[axis]
        return Math.max(group.size[axis], needed)
    })
    group.size = sides
}

function holds(group, node) {
    return [0, 1].every(axis => {
        const middle = node.pos[axis] + node.size[axis] / 2
        return group.pos[axis] <= middle && middle <= group.pos[axis] + group.size[axis]
    })
}

function lower(node) {
    for (let other = covered(node); other; other = covered(node)) {
        node.pos = [node.pos[0], other.pos[1] + other.size[1] + GAP + TITLE]
    }
}

function covered(node) {
    const apart = (one, other, axis, margin) =>
        one.pos[axis] + one.size[axis] + margin <= other.pos[axis] ||
        other.pos[axis] + other.size[axis] + margin <= one.pos[axis]
    return nodesOf(node.graph).find(other => other !== node && !apart(node, other, 0, 0) && !apart(node, other, 1, TITLE))
}

/** Moves everything that begins right of `edge` and is not pinned, and the right side of groups that reach over it. */
function makeRoom(turn, edge, width) {
    for (const other of nodesOf(turn.graph)) {
        const movable = other !== turn && !other.flags?.pinned
        if (movable && other.pos[0] >= edge) other.pos = [other.pos[0] + width, other.pos[1]]
    }
    for (const group of groupsOf(turn.graph)) {
        if (group.pos[0] >= edge) group.pos = [group.pos[0] + width, group.pos[1]]
        else if (group.pos[0] + group.size[0] > edge) group.size = [group.size[0] + width, group.size[1]]
    }
}

/** A node and those that its session comes from, nearest first. */
function* upstream(node) {
    const seen = new Set()
    const before = at => BACK.map(name => sourceOf(at, name)?.node).find(Boolean)
    for (let at = node; at && !seen.has(at); at = before(at)) {
        seen.add(at)
        yield at
    }
}

function sessionOutput(node) {
    return node.outputs?.findIndex(output => output.type === SESSION) ?? -1
}

function widgetOf(node, name) {
    return node.widgets?.find(widget => widget.name === name)
}

function groupsOf(graph) {
    return graph.groups ?? graph._groups
}

function inView(node, canvas) {
    const [left, top, width, height] = canvas.visible_area
    const [x, y] = node.pos
    return x >= left && y - TITLE >= top && x + node.size[0] <= left + width && y + node.size[1] <= top + height
}

/** Puts the cursor into a text widget as soon as the host shows it: as an element of its own, or in "Nodes 2.0". */
function typeInto(node, name, frames) {
    const fields = [widgetOf(node, name)?.element, document.querySelector(`[data-node-id="${node.id}"] textarea`)]
    const field = fields.find(field => field?.getClientRects().length)
    if (field) field.focus()
    else if (frames) requestAnimationFrame(() => typeInto(node, name, frames - 1))
}
