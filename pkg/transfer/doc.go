// Package transfer moves blobs between agents, in pieces, over gRPC.
//
// [Server] answers other agents: it sends a blob from the spool, from the site's own registry, or from a flight that is
// still bringing it (cut-through). [Fetcher] asks other agents: it keeps one flight per digest, whoever wants it, writes
// what arrives to the spool, and goes on from the missing pieces, with another source if need be, when a link breaks.
//
// It is not a scheduler: which blobs are wanted, from which sites, with what right, is told to it by functions in the
// configurations; nor does it keep trying for ever: a flight that made no progress in a few rounds ends with an error, and
// the caller's work queue comes back. It does not touch registries but through [Local].
//
// Everything exported is safe for concurrent use. Flights are goroutines of [Fetcher.Run] and end with it, their pieces kept.
//
// Invariants:
//
//   - Nothing is committed before the spool has verified the whole blob's SHA-256. Each message's offset, length and
//     CRC-32C are checked before its bytes are written.
//   - A flight draws from one source at a time, with several streams. Fellows are served only from whole content or from
//     flights that ask no fellow, and a flight says that it asks one before it does: so no circle of members can wait for
//     each other, and a fellow may wait for as long as a queue, a limit or a link takes.
//   - Ranges are handed out front first, cut at the same offsets at every site, so that what follows can follow closely.
//     Under a download limit a range is asked for in portions that the limit has allowed beforehand.
package transfer
