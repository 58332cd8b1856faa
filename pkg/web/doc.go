// Package web is the page on http.listen, and the JSON under it: GET / is the page, GET /api/v1/… are the documents that fanoutctl prints with -o json, and GET /api/v1/watch sends what
// changes as server-sent events.
//
// It only reads, and it knows nothing of the agent: a Fabric answers as the agent's AdminService does. The page is made of the files under assets, which are in the binary. It asks no
// other host for anything, and its scripts put text into the page as text, never as HTML.
//
// What is watched is asked once, however many look: a feed holds the newest picture in parts, each part as JSON, and numbers them as they change. A watcher holds nothing but the number up to which
// it was told, so a slow one costs no memory and misses only what was replaced meanwhile. One that does not read for WriteTimeout is dropped; the page comes back by itself.
//
// A Server is safe for concurrent use.
package web
