package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

const harborAPI = "/api/v2.0"

// EnsureRepository makes what a push into repo needs: in Harbor its project, private. Elsewhere it does nothing. What was seen to be there is not
// asked for again until a push says otherwise.
func (c *Client) EnsureRepository(ctx context.Context, repo string) error {
	if err := checkRepository(repo); err != nil {
		return err
	}
	if !c.harbor {
		return nil
	}
	project, _, err := harborProject(repo)
	if err != nil {
		return err
	}
	unlock, err := c.ensuring.lock(ctx, project)
	if err != nil {
		return fmt.Errorf("make project %s: %w", project, err)
	}
	defer unlock()
	c.mu.Lock()
	known := c.projects[project]
	c.mu.Unlock()
	if known {
		return nil
	}
	exists, err := c.projectExists(ctx, repo, project)
	if err != nil {
		return err
	}
	if !exists {
		if err := c.makeProject(ctx, repo, project); err != nil {
			return err
		}
		c.auth.forgetTokens()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.projects[project] = true
	return nil
}

// harborProject cuts a repository into project and name within it.
func harborProject(repo string) (project, name string, err error) {
	project, name, ok := strings.Cut(repo, "/")
	if !ok {
		return "", "", fmt.Errorf("repository %q has no project; in Harbor a repository is PROJECT/NAME: %w", repo, ErrInvalid)
	}
	return project, name, nil
}

// Quota is how much of a project's room is used, in bytes.
type Quota struct {
	Project string
	Used    int64
	// Limit is negative where there is none.
	Limit int64
}

// Quota asks for the quota of the project that a repository is in. ErrUnsupported: the registry has no quotas. ErrNotFound: the project is not there yet. ErrDenied: these credentials are
// not told. Safe for concurrent use.
func (c *Client) Quota(ctx context.Context, repo string) (Quota, error) {
	if err := checkRepository(repo); err != nil {
		return Quota{}, err
	}
	if !c.harbor {
		return Quota{}, fmt.Errorf("quota of %s: %w", repo, ErrUnsupported)
	}
	project, _, err := harborProject(repo)
	if err != nil {
		return Quota{}, err
	}
	in := call{
		op: "read the quota of the project of", repo: repo, method: http.MethodGet, api: true, path: harborAPI + "/projects/" + url.PathEscape(project) + "/summary",
		header: http.Header{"X-Is-Resource-Name": {"true"}}, want: []int{http.StatusOK},
	}
	resp, err := c.do(ctx, in)
	if err != nil {
		return Quota{}, err
	}
	defer closeBody(resp)
	var summary struct {
		Quota *struct{ Hard, Used map[string]int64 } `json:"quota"`
	}
	if err := c.decode(ctx, in, resp, &summary); err != nil {
		return Quota{}, err
	}
	if summary.Quota == nil { // it leaves out what the account may not read
		return Quota{}, fmt.Errorf("quota of project %s: %w", project, ErrDenied)
	}
	q := Quota{Project: project, Used: summary.Quota.Used["storage"], Limit: -1}
	if limit, limited := summary.Quota.Hard["storage"]; limited {
		q.Limit = limit
	}
	return q, nil
}

func (c *Client) projectExists(ctx context.Context, repo, project string) (bool, error) {
	resp, err := c.do(ctx, call{
		op: "look for the project of", repo: repo, method: http.MethodHead, api: true,
		path: harborAPI + "/projects?project_name=" + url.QueryEscape(project), want: []int{http.StatusOK, http.StatusNotFound},
	})
	if err != nil {
		return false, err
	}
	closeBody(resp)
	return resp.StatusCode == http.StatusOK, nil
}

func (c *Client) makeProject(ctx context.Context, repo, project string) error {
	body, err := json.Marshal(map[string]any{"project_name": project, "metadata": map[string]string{"public": "false"}})
	if err != nil {
		return err
	}
	resp, err := c.do(ctx, call{
		op: "make the project of", repo: repo, method: http.MethodPost, api: true, path: harborAPI + "/projects",
		header: http.Header{"Content-Type": {"application/json"}},
		body:   func() io.Reader { return strings.NewReader(string(body)) }, length: int64(len(body)),
		want: []int{http.StatusCreated, http.StatusConflict},
	})
	var e *Error
	if errors.As(err, &e) && (errors.Is(err, ErrDenied) || errors.Is(err, ErrUnauthorized)) {
		e.Message = c.clean(fmt.Sprintf("project %s is not there, and these credentials may not make it: make it by hand, or use a system robot account "+
			"with the right to create projects (%s)", project, e.Message))
		e.kind = ErrNoProject
		return e
	}
	if err != nil {
		return err
	}
	closeBody(resp)
	c.log.Info("project made", "repository", project)
	return nil
}

// errNoProject marks a refusal whose reason is that the project is not there.
var errNoProject = fmt.Errorf("%w: %w", ErrNoProject, ErrNotFound)

// harborRefusal finds out whether a 401 of Harbor means that the project is not there: Harbor says so with 401 and no challenge. A project that
// is there by now was made meanwhile, and the request may go well if it is sent again.
func (c *Client) harborRefusal(ctx context.Context, in call, e *Error) (again bool) {
	if !c.harbor || in.api || in.repo == "" || e.Status != http.StatusUnauthorized || e.challenged {
		return false
	}
	project, _, err := harborProject(in.repo)
	if err != nil {
		return false
	}
	exists, err := c.projectExists(ctx, in.repo, project)
	if err != nil {
		return false
	}
	// Tokens that were given before the project was made have no rights in it.
	c.auth.forgetTokens()
	if exists {
		return true
	}
	c.mu.Lock()
	delete(c.projects, project)
	c.mu.Unlock()
	e.kind = ErrNotFound
	e.cause = errNoProject
	if e.Message == "" {
		e.Message = "project " + project + " is not there"
	}
	return false
}

// pushing runs f, and once more after making the project if that was missing.
func (c *Client) pushing(ctx context.Context, repo string, f func() error) error {
	err := f()
	if !errors.Is(err, errNoProject) {
		return err
	}
	if err := c.EnsureRepository(ctx, repo); err != nil {
		return err
	}
	return f()
}

// harborRepositories lists by Harbor's API. That shows an anonymous view to wrong credentials, so these are proved first.
func (c *Client) harborRepositories(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := c.Ping(ctx); err != nil {
			yield("", err)
			return
		}
		for n := 1; n <= maxPages; n++ {
			in := call{
				op: "list repositories", method: http.MethodGet, api: true, want: []int{http.StatusOK},
				path: harborAPI + "/repositories?sort=id&page_size=" + strconv.Itoa(harborPageSize) + "&page=" + strconv.Itoa(n),
			}
			resp, err := c.do(ctx, in)
			if err != nil {
				yield("", err)
				return
			}
			var repos []struct {
				Name string `json:"name"`
			}
			if err := c.decode(ctx, in, resp, &repos); err != nil {
				yield("", err)
				return
			}
			for _, r := range repos {
				if ValidRepository(r.Name) && !yield(r.Name, nil) {
					return
				}
			}
			if len(repos) < harborPageSize {
				return
			}
		}
	}
}

// DeleteTag removes a tag and leaves the manifest and its other tags.
func (c *Client) DeleteTag(ctx context.Context, repo, tag string) error {
	if err := checkReference(repo, tag); err != nil {
		return err
	}
	if ValidDigest(tag) {
		return fmt.Errorf("delete tag %s@%s: a digest is not a tag: %w", repo, tag, ErrInvalid)
	}
	in := call{
		op: "delete tag", repo: repo, ref: tag, method: http.MethodDelete, path: "/v2/" + repo + "/manifests/" + tag,
		scopes: []string{"repository:" + repo + ":delete,pull"}, want: []int{http.StatusOK, http.StatusAccepted, http.StatusNoContent},
	}
	if c.harbor {
		project, name, err := harborProject(repo)
		if err != nil {
			return err
		}
		// The name is escaped twice, so that a proxy that unescapes once does no harm.
		in.path = harborAPI + "/projects/" + url.PathEscape(project) + "/repositories/" + url.PathEscape(url.PathEscape(name)) +
			"/artifacts/" + tag + "/tags/" + tag
		in.api = true
	}
	resp, err := c.do(ctx, in)
	var e *Error
	if errors.As(err, &e) && !errors.Is(err, ErrReadOnly) && (errors.Is(err, ErrUnsupported) || e.Status == http.StatusBadRequest && !c.harbor) {
		e.kind = ErrUnsupported
		e.Message = c.clean("this registry cannot remove a tag alone, or deletion is switched off in it: " + e.Message)
		return e
	}
	if err != nil {
		return err
	}
	closeBody(resp)
	return nil
}
