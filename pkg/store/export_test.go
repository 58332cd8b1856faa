package store

// InBoot makes Open believe that boot is the name of the time since the machine was started; empty: that can't be known.
func InBoot(cfg Config, boot string) Config {
	cfg.boot = func() string { return boot }
	return cfg
}

// HasBoot says that InBoot was called.
func HasBoot(cfg Config) bool { return cfg.boot != nil }
