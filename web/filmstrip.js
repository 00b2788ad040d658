// The strip on the Filmstrip node: click a turn to see it, drag over it to compare it with the one before it or with
// the source. Which turn is shown, and which of the host's files it is, is kept in the node's properties and so in the
// workflow; how far it was dragged over is not, or every look would be a step of undo.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { word } from "./words.js"

const PROPERTY = "anchoredit_strip" // {turns: [{filename, subfolder, type, caption}], turn, against}
const SIZE = [460, 560]
const LEAST_HEIGHT = 240
const STYLE = new URL("./filmstrip.css", import.meta.url).href

export function addStrip(node) {
    const strip = new Strip(node)
    const widget = node.addDOMWidget("strip", "anchoredit_strip", strip.element, {
        serialize: false,
        hideOnZoom: false,
        getMinHeight: () => LEAST_HEIGHT,
    })
    widget.serialize = false
    // the strip stands for the contact sheet that the host would draw
    node.onDrawBackground = () => {}
    node.hideOutputImages = true
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])])
    after(node, "onExecuted", output => strip.take(output?.turns))
    after(node, "onConfigure", () => strip.show())
}

class Strip {
    constructor(node) {
        this.node = node
        this.split = null // 0..1 from the left, where the images meet; null: the turn's own image alone
        this.before = make("img", "before", { draggable: false })
        this.now = make("img", "now", { draggable: false })
        this.line = make("div", "line")
        this.labels = [make("span", "label left"), make("span", "label right")]
        this.message = make("p", "message")
        this.stage = make("div", "stage", { tabIndex: 0 })
        this.stage.append(this.before, this.now, this.line, ...this.labels, this.message)
        this.caption = make("div", "caption")
        this.against = make("button", "against", { type: "button", title: word("againstTooltip") })
        this.row = make("div", "row")
        this.row.append(this.caption, this.against)
        this.thumbs = make("div", "thumbs")
        this.element = make("div", "anchoredit-strip")
        this.element.append(make("link", "", { rel: "stylesheet", href: STYLE }), this.stage, this.row, this.thumbs)
        this.listen()
        this.show()
    }

    /** What the node remembers. A workflow may come from anywhere, so nothing is taken for granted. */
    get state() {
        const { turns, turn, against } = this.node.properties?.[PROPERTY] ?? {}
        const files = Array.isArray(turns) ? turns.filter(file => file?.filename) : []
        return { turns: files, turn: Number.isInteger(turn) ? turn : 0, against }
    }

    /** Changes what is shown, and remembers it. */
    set(change) {
        this.node.properties[PROPERTY] = { ...this.state, ...change }
        this.show()
    }

    /** Takes the images of a run: stays at the turn that was looked at, or goes to the newest if there are more. */
    take(turns) {
        if (!turns?.length) return
        const { turns: known, turn } = this.state
        const kept = known.length >= turns.length && turn < turns.length
        if (!kept) this.split = null
        this.set({ turns, turn: kept ? turn : turns.length - 1 })
    }

    show() {
        const { turns, turn, against } = this.state
        const { split } = this
        const shown = turns[turn]
        const other = against === "source" ? 0 : turn - 1
        const splits = split !== null && turn > 0
        this.message.textContent = word("stripEmpty")
        this.element.classList.toggle("empty", !shown)
        this.element.classList.toggle("split", splits)
        this.draw(this.now, shown)
        this.draw(this.before, turn > 0 ? turns[other] : null)
        this.now.style.clipPath = splits ? `inset(0 0 0 ${100 * split}%)` : ""
        this.line.style.left = `${100 * (split ?? 0)}%`
        this.labels[0].textContent = splits ? nameOf(other) : ""
        this.labels[1].textContent = shown ? nameOf(turn) : ""
        this.caption.textContent = this.caption.title = shown?.caption ?? ""
        this.against.textContent = word(against === "source" ? "againstSource" : "againstPrevious")
        this.drawThumbs(turns, turn)
    }

    /** A file of the host that is gone shows as a line of text, never as a broken image. */
    draw(image, file) {
        const url = file ? urlOf(file) : ""
        if (image.dataset.url === url) return
        image.dataset.url = url
        image.classList.remove("there")
        if (image === this.now) this.element.classList.remove("gone")
        if (!url) return image.removeAttribute("src")
        image.onload = () => image.classList.add("there")
        image.onerror = () => {
            image.removeAttribute("src")
            if (image !== this.now) return
            this.element.classList.add("gone")
            this.message.textContent = word("stripGone")
        }
        image.src = url
    }

    drawThumbs(turns, turn) {
        while (this.thumbs.children.length > turns.length) this.thumbs.lastChild.remove()
        turns.forEach((file, number) => {
            const button = this.thumbs.children[number] ?? this.thumbs.appendChild(this.thumb(number))
            button.title = [nameOf(number), file.caption].filter(Boolean).join(": ")
            button.classList.toggle("chosen", number === turn)
            this.draw(button.firstChild, file)
        })
        const chosen = this.thumbs.children[turn]
        if (chosen) this.thumbs.scrollLeft = chosen.offsetLeft - (this.thumbs.clientWidth - chosen.offsetWidth) / 2
    }

    thumb(number) {
        const button = make("button", "thumb", { type: "button" })
        button.append(make("img", "", { draggable: false }), make("span", "", { textContent: number || "\u25c6" }))
        button.onclick = () => {
            this.split = null
            this.set({ turn: number })
        }
        return button
    }

    listen() {
        const { stage } = this
        const scrub = event => {
            const box = stage.getBoundingClientRect()
            this.split = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width))
            this.show()
        }
        stage.onpointerdown = event => {
            if (event.button) return
            event.stopPropagation()
            stage.focus()
            stage.setPointerCapture(event.pointerId)
            scrub(event)
        }
        stage.onpointermove = event => {
            if (stage.hasPointerCapture(event.pointerId)) scrub(event)
        }
        stage.ondblclick = () => {
            this.split = null
            this.show()
        }
        stage.onkeydown = event => {
            const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
            const { turns, turn } = this.state
            if (!step || !turns[turn + step]) return
            event.preventDefault()
            event.stopPropagation()
            this.set({ turn: turn + step })
        }
        stage.addEventListener("wheel", event => app.canvas.processMouseWheel(event), { passive: false })
        this.against.onclick = () => this.set({ against: this.state.against === "source" ? "previous" : "source" })
    }
}

function nameOf(turn) {
    return turn ? word("turn", { number: turn }) : word("source")
}

function urlOf({ filename, subfolder = "", type }) {
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}

function make(kind, className, properties = {}) {
    return Object.assign(document.createElement(kind), { className, ...properties })
}

function after(node, name, call) {
    const present = node[name]
    node[name] = function (...given) {
        const answer = present?.apply(this, given)
        call(...given)
        return answer
    }
}
