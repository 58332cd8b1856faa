package integration

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// TestHealth: /readyz and gRPC's health service say the same of an agent whose group has no root, and /healthz that it runs.
func TestHealth(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"})
	a, b := sites["hq-a"], sites["hq-b"]
	conn, err := grpc.NewClient("passthrough:///"+a.fabric, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	says := func(path string, status int, serving, live healthv1.HealthCheckResponse_ServingStatus, words ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s says %d, and gRPC %s", path, status, serving), func() error {
			resp, err := http.Get("http://" + a.http + path)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				return err
			}
			if resp.StatusCode != status {
				return fmt.Errorf("%d: %s", resp.StatusCode, body)
			}
			for _, w := range words {
				if !strings.Contains(string(body), w) {
					return fmt.Errorf("no %q in %s", w, body)
				}
			}
			for service, want := range map[string]healthv1.HealthCheckResponse_ServingStatus{"": serving, "live": live} {
				got, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
				if err != nil {
					return err
				}
				if got.GetStatus() != want {
					return fmt.Errorf("gRPC says %s of %q", got.GetStatus(), service)
				}
			}
			return nil
		})
	}
	const serving, not = healthv1.HealthCheckResponse_SERVING, healthv1.HealthCheckResponse_NOT_SERVING
	says("/readyz?verbose", http.StatusOK, serving, serving, `"raft":"ok"`, `"catalog":"ok"`, `"registry":"ok"`, `"sweep":"ok"`)
	b.kill()
	says("/readyz", http.StatusServiceUnavailable, not, serving)
	says("/readyz?verbose", http.StatusServiceUnavailable, not, serving, `"raft":"the group has no root now`)
	says("/healthz", http.StatusOK, not, serving)
	b.start()
	says("/readyz", http.StatusOK, serving, serving)
}
