// Package store is an agent's memory on disk: the spool, through which blobs pass, and the metadata that must outlive a
// restart. It is not a registry, knows nothing of networks, and decides nothing about what should be fetched.
//
// # Spool
//
// A blob is received by one [Ingest] at a time, in pieces and in any order, and read by any number of [Reader]s, also while
// it grows. Commit publishes it once every piece is there and its SHA-256 is verified. Files:
//
//	spool/ingest/<hex>.data      the content so far, sparse, of the blob's full length
//	spool/ingest/<hex>.pieces    header, then 4 bytes a piece: CRC-32C of the piece, 0 when it is absent
//	spool/blobs/<hex>.<size>     committed content; its modification time is its last use
//	spool/unproved/<hex>.<size>  content that was committed before the machine was started
//	spool/trash/<n>              being unlinked
//
// The directories blobs and unproved are the index of what is committed, so that there is nothing to fall out of step with
// it. Checkpoints (bytes hashed and the SHA-256 state) are in cache.db, tied by a random number to the ingest they belong
// to.
//
// Nothing of this is synced. The spool is a passage, and waiting for the disk would cost a third of a hop; instead, what a
// power cut may have spoiled is proved before it is believed. Within one boot of the machine, which the kernel's boot id
// names, what a killed process wrote is in the page cache. Where there is no boot id, each Open begins a boot of its own.
//
// The invariants:
//   - A piece is marked in .pieces only after its data was written, so within one boot a marked piece is whole. In another
//     boot it may not be. Pieces that no checkpoint covers are read back and compared with their marks before they count.
//   - A checkpoint is put only after the data it covers was written, and exists only in the boot that put it. What it covers
//     is neither read back nor hashed again. Without one, the SHA-256 begins at the first byte.
//   - A name in blobs appears only after the content was hashed, and matched, in the boot that meta.db names. At the first
//     Open in another, all names are moved to unproved before meta.db names that one.
//   - A blob in unproved is hashed when it is first opened, by one caller for all: right, its name is moved to blobs; wrong
//     or unreadable, it is dropped (ErrDamaged). Until then it counts as committed, also against the limit and in eviction.
//   - used ≤ limit, where a blob counts in full from the moment its ingest begins; what has a reader or writer is never evicted.
//
// What each kill leaves, and what Open or the next Ingest makes of it:
//
//	killed after                             found                          mended by
//	data file made                           .data without .pieces          removed
//	.pieces made                             an ingest without pieces       continued
//	piece's data written, not marked         mark 0                         the piece is absent
//	piece marked, checkpoint not put         an older checkpoint            read back from there; hashed from there
//	checkpoint put                           the checkpoint                 continued without hashing again
//	commit: hashed                           an ingest with all pieces      the next writer commits it
//	commit: renamed                          .pieces without .data          removed; the blob is committed
//	commit: .pieces removed                  a checkpoint of no ingest      removed
//	drop: .pieces removed                    .data without .pieces          removed
//	drop: data moved to trash                a file in trash                removed
//	new boot: some blobs moved               meta.db names another boot     the rest is moved
//	new boot: all blobs moved                meta.db names another boot     nothing is left to move; the boot is named
//	proof: hashed                            the blob in unproved           proved again
//	proof: name moved                        the blob in blobs              committed
//	proof: wrong, not dropped                the blob in unproved           proved again
//
// A power cut leaves any of these, and besides takes what was not on disk yet, whole files, names and renames among it:
//
//	lost                                     found in the next boot         mended by
//	data of a marked piece                   CRC differs                    the piece is absent
//	a mark                                   mark 0, or CRC differs         the piece is absent
//	the header of .pieces                    no header                      the ingest is removed
//	.data or .pieces                         one without the other          removed
//	length of .data                          another length                 set again; CRCs differ where it was cut
//	any of cache.db                          cache.open, or another boot    cache.db, or what checkpoints it has, is emptied
//	commit: the rename                       an ingest                      read back, hashed, and committed by the next writer
//	commit: content                          a blob of another length       removed
//	                                         a blob of other bytes          dropped when it is first opened
//	proof: the rename                        the blob in unproved           proved again, as those in blobs are
//
// A disk that fails to write back what it took, without the machine going down, is not seen here, nor is a volume that is
// torn off and attached again within one boot: like bits that rot, that is for who reads the blob to find by its digest.
//
// # Metadata
//
// meta.db (bbolt, synced) holds what can't be had again: the incarnation, ref states, values. cache.db (bbolt,
// not synced) holds what can: where the own registry holds which blob, manifests, checkpoints. cache.db is thrown away when
// it is damaged, or when the machine went down while it was open.
//
// # Concurrency
//
// Everything is safe for concurrent use. The package starts no goroutines of its own. Lock order: entry.prepareMu, then
// Spool.mu, then entry.mu; no disk operation that takes time with the content's size happens under the latter two.
package store
