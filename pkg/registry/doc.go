// Package registry speaks with one container registry over HTTP: it lists, reads and resolves what is there, pushes blobs while they still
// arrive, puts manifests as the bytes they came as, and knows what Harbor does differently. It also reads the webhooks of Harbor and of the
// distribution registry, walks the closure of a manifest, and holds the embedded registry.
//
// It is not a cache and not a scheduler: it decides nothing about what should be where, and it does not back off. A request that failed is
// returned as an [*Error] with the registry's status, code, message and Retry-After; the caller decides when to ask again. Only a broken
// connection is tried again here, shortly, and a dead upload session is begun anew a bounded number of times.
//
// A [Client] may be used by any number of goroutines.
//
// Invariants:
//   - PutManifest never alters bytes: what is sent is Manifest.Content, and its SHA-256 is Manifest.Digest.
//   - PushBlob reports success only when the registry has accepted the digest.
//   - No method but PutManifest with a tag moves a tag. The one tag that is put unasked is the fallback referrers tag (see [IsFallbackTag]),
//     which only ever grows, save for entries that the registry itself says it lacks.
//   - Credentials go to the configured host and to the token service that it names, never to the target of a redirect.
package registry
