package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// errEnough ends an answer of which no more is wanted.
var errEnough = errors.New("enough")

// Trouble is what is answered instead of a document.
type Trouble struct {
	// Code as gRPC names it, such as "NotFound".
	Code string `json:"code"`
	// Message in words.
	Message string `json:"message"`
}

func troubleOf(err error) Trouble {
	st, ok := status.FromError(err)
	if !ok && errors.Is(err, context.DeadlineExceeded) {
		st = status.FromContextError(err)
	}
	return Trouble{Code: st.Code().String(), Message: view.Clean(st.Message())}
}

func httpStatus(c codes.Code) int {
	switch c {
	case codes.NotFound:
		return http.StatusNotFound
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.FailedPrecondition:
		return http.StatusConflict
	case codes.Unavailable, codes.ResourceExhausted:
		return http.StatusServiceUnavailable
	case codes.PermissionDenied, codes.Unauthenticated:
		return http.StatusForbidden
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// ImageList is the document of /api/v1/images.
type ImageList struct {
	view.Images
	// More: there are more than were asked for.
	More bool `json:"more"`
}

// EventList is the document of /api/v1/events.
type EventList struct {
	SchemaVersion int          `json:"schemaVersion"`
	Events        []view.Event `json:"events"`
}

func (s *Server) routes() {
	get := func(pattern string, answer func(*http.Request) (any, error)) {
		s.mux.HandleFunc("GET /api/v1/"+pattern, func(w http.ResponseWriter, r *http.Request) {
			doc, err := answer(r)
			if err != nil {
				writeJSON(w, r, httpStatus(status.Code(err)), troubleOf(err))
				return
			}
			writeJSON(w, r, http.StatusOK, doc)
		})
	}
	f := s.cfg.Fabric
	get("tree", func(r *http.Request) (any, error) {
		return last(view.TreeOf, func(keep func(*adminv1.TreeResponse) error) error {
			return f.Tree(r.Context(), &adminv1.TreeRequest{Group: r.FormValue("group")}, keep)
		})
	})
	get("where", func(r *http.Request) (any, error) {
		return last(view.WhereOf, func(keep func(*adminv1.WhereResponse) error) error {
			return f.Where(r.Context(), &adminv1.WhereRequest{Ref: r.FormValue("ref")}, keep)
		})
	})
	get("pending", func(r *http.Request) (any, error) {
		return last(view.PendingOf, func(keep func(*adminv1.PendingResponse) error) error {
			return f.Pending(r.Context(), &adminv1.PendingRequest{Site: r.FormValue("site")}, keep)
		})
	})
	get("why", func(r *http.Request) (any, error) {
		w, err := f.Why(r.Context(), &adminv1.WhyRequest{Ref: r.FormValue("ref"), Site: r.FormValue("site")})
		if err != nil {
			return nil, err
		}
		return view.WhyOf(w), nil
	})
	get("rollouts", func(r *http.Request) (any, error) {
		return last(view.RolloutsOf, func(keep func(*adminv1.RolloutsResponse) error) error {
			return f.Rollouts(r.Context(), &adminv1.RolloutsRequest{}, keep)
		})
	})
	get("rollouts/{id}", func(r *http.Request) (any, error) {
		return last(rolloutOf, func(keep func(*adminv1.RolloutsResponse) error) error {
			return f.Rollouts(r.Context(), &adminv1.RolloutsRequest{Id: r.PathValue("id")}, keep)
		})
	})
	get("images", s.images)
	get("events", func(r *http.Request) (any, error) {
		doc := EventList{SchemaVersion: view.SchemaVersion, Events: []view.Event{}}
		err := f.Events(r.Context(), &adminv1.EventsRequest{}, func(e *adminv1.EventsResponse) error {
			doc.Events = append(doc.Events, view.EventOf(e))
			return nil
		})
		return doc, err
	})
	get("conflicts", func(r *http.Request) (any, error) {
		resp, err := f.Conflicts(r.Context())
		return view.ConflictsOf(resp), err
	})
	get("deletions", func(r *http.Request) (any, error) {
		resp, err := f.Deletions(r.Context())
		return view.DeletionsOf(resp), err
	})
	get("version", func(r *http.Request) (any, error) {
		v, err := f.Version(r.Context())
		return view.ServerVersion{Version: v.GetVersion(), Site: v.GetSite(), Group: v.GetGroup()}, err
	})
	s.mux.HandleFunc("GET /api/v1/watch", s.watch)
}

// last makes the document of the last message of an answer.
func last[M, D any](doc func(*M) D, ask func(keep func(*M) error) error) (any, error) {
	var m *M
	if err := ask(func(x *M) error { m = x; return nil }); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, status.Error(codes.Internal, "there was no answer")
	}
	return doc(m), nil
}

func rolloutOf(r *adminv1.RolloutsResponse) view.Rollout {
	if len(r.GetRollouts()) != 1 {
		return view.Rollout{}
	}
	return view.RolloutOf(r.GetRollouts()[0], r.GetSites(), view.RolloutsOf(r).AsOf)
}

// images lists those whose names contain a text, up to a number.
func (s *Server) images(r *http.Request) (any, error) {
	all, _ := strconv.ParseBool(r.FormValue("all"))
	limit, err := strconv.Atoi(r.FormValue("limit"))
	if r.FormValue("limit") != "" && (err != nil || limit < 1) {
		return nil, status.Error(codes.InvalidArgument, "limit: not a number from 1 on")
	}
	contains := strings.ToLower(r.FormValue("contains"))
	doc := ImageList{Images: view.Images{SchemaVersion: view.SchemaVersion, Images: []view.Image{}}}
	err = s.cfg.Fabric.Images(r.Context(), &adminv1.ImagesRequest{Repository: r.FormValue("repository"), All: all}, func(m *adminv1.ImagesResponse) error {
		if contains != "" && !strings.Contains(strings.ToLower(m.GetRef()+" "+m.GetDigest()), contains) {
			return nil
		}
		if limit > 0 && len(doc.Images.Images) == limit {
			doc.More = true
			return errEnough
		}
		doc.Images.Images = append(doc.Images.Images, view.ImageOf(m))
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return doc, err
}

// writeJSON answers with a document.
func writeJSON(w http.ResponseWriter, r *http.Request, code int, doc any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(doc); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept-Encoding")
	body := b.Bytes()
	if takesGzip(r) {
		if packed, err := pack(body); err == nil && packed != nil {
			h.Set("Content-Encoding", "gzip")
			body = packed
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body)
}
