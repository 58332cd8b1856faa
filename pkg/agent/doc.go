// Package agent is one fanout agent: the only package that knows the tree, the catalog, the transfer of content and the registry, and joins them.
//
// One control loop serves publishing and delivering: for a ref, what the catalog wants is compared with what the registry shows and with what this site last did
// (pkg/reconcile), and the difference is worked off. Catalog changes, webhooks and the sweep only put refs into the work queue; nothing depends on any of them arriving once.
//
// Invariants:
//   - at most one worker is busy with a ref at a time, so that its tag moves in the order of revisions;
//   - a tag is put after everything under it was accepted by the registry, and after the intent to put it was written down;
//   - a ref with a revision up to Site.revision as reported is either delivered or listed as pending; as pending counts, too, what is left as somebody changed it.
package agent
