// "Next turn": a Turn to the right of a node that gives a session, wired to it and ready to be typed into.

import { app } from "../../scripts/app.js"
import { reached, rewire, sourceOf, usersOf } from "./graph_links.js"
import { placeBelow, placeRight, TITLE } from "./layout.js"
import { word } from "./words.js"

const TURN = "AnchorEditTurn"
const SESSION = "ANCHOR_MEMORY"
const COPIED = ["seed", "steps", "cfg"]
const BACK = ["session", "variations"] // inputs by which a node hangs on the turn before
// What shows or saves the newest turn goes along; every other node that takes the session goes its own way.
const FOLLOWERS = ["AnchorEditFilmstrip", "AnchorEditDrift", "AnchorEditSaveSession", "AnchorEditExportTurns"]
const TURN_SIZE = [340, 500] // with the preview that the host draws while a turn is made
const FRAMES = 60 // to wait for the field that the host draws

export function givesSession(node) {
    return sessionOutput(node) >= 0
}

/** A button on the node, and the same in its menu, which a collapsed node has too. */
export function addNextTurn(node) {
    const widget = node.addWidget("button", "next_turn", null, () => addTurnAfter(node), { serialize: false })
    widget.label = word("nextTurn")
    widget.tooltip = word("nextTurnTooltip")
    widget.serialize = false
    const [width, height] = node.computeSize()
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])

    const present = node.getExtraMenuOptions
    node.getExtraMenuOptions = function (canvas, options) {
        const more = present?.apply(this, arguments)
        options.unshift({ content: word("nextTurn"), callback: () => addTurnAfter(node) }, null)
        return more
    }
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
    const output = sessionOutput(node)
    const users = usersOf(node, output)
    const ends = users.flatMap(user => reached(user))
    const branches = ends.some(end => !FOLLOWERS.includes(end.type))
    const turn = LiteGraph.createNode(TURN)
    node.graph.add(turn)
    const like = node.type === TURN
    turn.setSize(like ? [node.size[0], Math.max(node.size[1], TURN_SIZE[1])] : [...TURN_SIZE])
    if (like && /\d+$/.test(node.title)) turn.title = node.title.replace(/\d+$/, number => Number(number) + 1)
    placeRight(turn, node, branches)

    node.connect(output, turn, turn.findInputSlot("session"))
    for (const name of COPIED) {
        const copied = [...upstream(node)].map(before => widgetOf(before, name)).find(Boolean)
        if (copied) widgetOf(turn, name).value = copied.value
    }
    // a finished turn stays as it is, so that queueing again computes only what is new
    const control = widgetOf(turn, "control_after_generate")
    if (control) control.value = "fixed"

    if (!branches) for (const user of users) rewire(user, turn, sessionOutput(turn))
    if (branches || !ends.length) addPreview(turn)
    return turn
}

/** Something has to want a turn, or the host does not compute it. */
function addPreview(turn) {
    const preview = LiteGraph.createNode("PreviewImage")
    turn.graph.add(preview)
    preview.setSize([turn.size[0], turn.size[0]])
    placeBelow(preview, turn)
    turn.connect(turn.outputs.findIndex(output => output.type === "IMAGE"), preview, 0)
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
