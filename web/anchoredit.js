// What the pack adds to the browser: a "next turn" button on every node that gives a session, and the strip on the
// Filmstrip node. Plain ES modules against the host's LiteGraph; nodes and workflows do without them.

import { app } from "../../scripts/app.js"
import { addStrip } from "./filmstrip.js"
import { addNextTurn, givesSession } from "./next_turn.js"
import { readWords } from "./words.js"

app.registerExtension({
    name: "anchoredit.browser",
    init: readWords,
    nodeCreated(node) {
        const kind = node.constructor.comfyClass ?? ""
        if (kind.startsWith("AnchorEdit") && givesSession(node)) addNextTurn(node)
        if (kind === "AnchorEditFilmstrip") addStrip(node)
    },
})
