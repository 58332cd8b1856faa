//go:build race

package store_test

// raceEnabled: the race detector makes pools forget, so allocations can't be counted.
const raceEnabled = true
