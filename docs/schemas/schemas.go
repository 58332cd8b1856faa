// Package schemas holds the JSON Schemas of the files that people write, for editors and for fanoutctl to print. They say less than the parser in pkg/plan, which also
// compares one part of a file with another; its tests hold the two together.
package schemas

import _ "embed" // the schemas

// Plan is the schema of a plan.
//
//go:embed plan.schema.json
var Plan string

// Policy is the schema of one policy, of which a file may hold several.
//
//go:embed policy.schema.json
var Policy string
