// Package archtest checks the architecture as tests: which package may import which, what only some packages may use, and that pure packages are pure. It has no
// code besides its tests, which ask the go command and parse the sources of this module. The rules and their reasons stand in the test file;
// whoever needs to break one changes it there, in sight of a reviewer.
package archtest
