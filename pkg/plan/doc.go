// Package plan reads the files by which a person says how releases go: plans (waves, gates, windows) and policies (which repositories wait for a promotion).
//
// Parse and ParsePolicies are strict: an unknown key, a value of the wrong kind and one out of its range are errors that name the file, the line, the key and the
// mend; all of them are reported at once. Resolve turns a plan into what a rollout keeps, with the groups of a fabric in place of patterns and numbers in place of
// percentages, and tells what a careful person would want to know first. Open and Next judge windows.
//
// The package is pure: it reads no file and no clock, and knows time zones only through the function that it is given. It does not run rollouts: that is pkg/catalog's
// state machine, which takes what Resolve returns and never sees a file. Everything returned is plain data, safe to share when nobody writes to it.
package plan
