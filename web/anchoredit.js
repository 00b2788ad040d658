// What the pack adds to the browser: a "next turn" button on every node that gives a session, and the strip on the
// Filmstrip node. Plain ES modules against the host's LiteGraph; nodes and workflows do without them.

import { app } from "../../scripts/app.js"
import { addStrip } from "./filmstrip.js"
import { addNextTurnButton, givesSession, nextTurnMenuItem } from "./next_turn.js"
import { readWords } from "./words.js"

app.registerExtension({
    name: "anchoredit.browser",
    init: readWords,
    nodeCreated(node) {
        const kind = node.constructor.comfyClass ?? ""
        if (kind.startsWith("AnchorEdit") && givesSession(node)) {
            addNextTurnButton(node)
            const inherited = node.getExtraMenuOptions
            node.getExtraMenuOptions = function (canvas, options) {
                const more = inherited?.apply(this, arguments)
                options.unshift(nextTurnMenuItem(this), null)
                return more
            }
        }
        if (kind === "AnchorEditFilmstrip") addStrip(node)
    },
})
