// Package store is an agent's memory on disk: the spool, through which blobs pass, and the metadata that must outlive a
// restart. It is not a registry, knows nothing of networks, and decides nothing about what should be fetched.
//
// # Spool
//
// A blob is received by one [Ingest] at a time, in pieces and in any order, and read by any number of [Reader]s, also while
// it grows. Commit publishes it once every piece is there and its SHA-256 is verified. Files:
//
//	spool/ingest/<hex>.data     the content so far, sparse, of the blob's full length
//	spool/ingest/<hex>.pieces   header, then 4 bytes a piece: CRC-32C of the piece, 0 when it is absent
//	spool/blobs/<hex>.<size>    committed content; its modification time is its last use
//	spool/trash/<n>             being unlinked
//
// The directory blobs is the index of what is committed, so that there is nothing to fall out of step with it. Checkpoints
// (bytes hashed and the SHA-256 state) are in cache.db, tied by a random number to the ingest they belong to, and gone in the
// next boot of the machine.
//
// The invariants:
//   - A piece is marked in .pieces only after its data was written, so after a kill of the process a marked piece is whole.
//     After a power cut it may not be: pieces after the checkpoint are read back and compared before they count.
//   - A checkpoint is put only after the data it covers was synced. What it covers is neither read back nor hashed again.
//   - A name in blobs appears only after the content was hashed, matched, and synced.
//   - After a failed sync nothing proves what is on disk: all that came after the last checkpoint is forgotten.
//   - used ≤ limit, where a blob counts in full from the moment its ingest begins; what has a reader or writer is never evicted.
//
// What each crash leaves, and what Open or the next Ingest makes of it:
//
//	crash after                              found                          mended by
//	data file made                           .data without .pieces          removed
//	.pieces made                             an ingest without pieces       continued
//	piece's data written, not marked         mark 0, or CRC differs         the piece is absent
//	piece marked, not synced, power cut      CRC differs                    the piece is absent
//	data synced, checkpoint not put          an older checkpoint            read back from there; hashed from there
//	checkpoint put                           the checkpoint                 continued without hashing again
//	commit: synced                           an ingest with all pieces      the next writer commits it
//	commit: renamed                          .pieces without .data          removed; the blob is committed
//	commit: renamed, rename lost (power)     as "synced"                    the next writer commits it
//	commit: .pieces removed                  a checkpoint of no ingest      removed
//	drop: .pieces removed                    .data without .pieces          removed
//	drop: data moved to trash                a file in trash                removed
//
// # Metadata
//
// meta.db (bbolt, synced) holds what can't be had again: the incarnation, ref states, values. cache.db (bbolt,
// not synced) holds what can: where the own registry holds which blob, manifests, checkpoints. cache.db is thrown away when
// it is damaged, or when the machine went down while it was open.
//
// # Concurrency
//
// Everything is safe for concurrent use. The package starts no goroutines of its own. Lock order: Spool.mu, then entry.mu;
// no disk operation that takes time with the content's size happens under either.
package store
