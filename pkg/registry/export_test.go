package registry

// BeforeStep is called before each step by which a collection takes something away, and stops it by an error.
func (e *Embedded) BeforeStep(step func(op string) error) { e.garbage.step = step }
