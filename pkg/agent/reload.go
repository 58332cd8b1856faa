package agent

import (
	"fmt"
	"reflect"

	"golang.org/x/time/rate"

	"github.com/fanout-io/fanout/pkg/config"
)

// minBurst is what may pass at once under any limit, in bytes: the largest message.
const minBurst = 1 << 20

// Reload puts new rates in force and reads the certificates again. Everything else in a configuration needs a new start; where it differs, the error says so and nothing was changed.
func (a *Agent) Reload(cfg *config.Config) error {
	now, next := *a.cfg, *cfg
	now.Limits.Download, now.Limits.Upload = next.Limits.Download, next.Limits.Upload
	if !reflect.DeepEqual(now, next) {
		return fmt.Errorf("the configuration changed in more than limits.download and limits.upload; restart the agent to put that in force")
	}
	cert, err := loadHTTPCert(cfg)
	if err != nil {
		return err
	}
	if a.identity != nil {
		if err := a.identity.Reload(); err != nil {
			return fmt.Errorf("reading the certificates again: %w", err)
		}
	}
	a.httpCert.Store(cert)
	a.setLimits(cfg.Limits)
	a.logger.Info("reloaded", "download", int64(cfg.Limits.Download), "upload", int64(cfg.Limits.Upload))
	return nil
}

func (a *Agent) setLimits(l config.Limits) {
	set := func(limiter *rate.Limiter, r config.Rate) {
		if r == 0 {
			limiter.SetLimit(rate.Inf)
			limiter.SetBurst(minBurst)
			return
		}
		limiter.SetLimit(rate.Limit(r.BytesPerSecond()))
		limiter.SetBurst(int(max(r.BytesPerSecond()/10, minBurst)))
	}
	set(a.download, l.Download)
	set(a.upload, l.Upload)
}
