// Package config reads fanoutd's configuration file.
//
// Parse is strict: an unknown key, a value of the wrong kind and a combination that can't work are errors that name the key, the line and the mend; all of them are
// reported at once. It reads no environment and no other file: the caller passes a look-up for ${NAME}. A Config is plain data, safe to share when nobody writes to it.
package config
