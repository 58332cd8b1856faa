package harbortest_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// ask puts the same questions to any Harbor, real or not.
func (p *place) ask() {
	p.t.Helper()
	p.askAccess()
	p.askProjects()
	p.askUploads()
	p.askManifests()
	p.askRules()
}

var (
	nobody = map[string]string{"Authorization": ""}
	wrong  = map[string]string{"Authorization": "Basic d3Jvbmc6d3Jvbmc="}
)

func (p *place) askAccess() {
	p.step("nobody asks /v2/", "GET", "/v2/", nobody, nil)
	p.step("wrong password asks /v2/", "GET", "/v2/", wrong, nil)
	p.step("robot asks /v2/", "GET", "/v2/", nil, nil)
	resp := p.step("token for a wrong password", "GET", "/service/token?service=harbor-registry&scope=repository:"+p.project+"/web:pull,push", wrong, nil)
	p.step("that token reads tags", "GET", "/v2/"+p.project+"/web/tags/list", p.bearer(resp), nil)
	resp = p.step("token for a missing project", "GET", "/service/token?service=harbor-registry&scope=repository:"+p.missing+"/web:pull,push", nil, nil)
	p.step("that token reads tags there", "GET", "/v2/"+p.missing+"/web/tags/list", p.bearer(resp), nil)
	puller := p.bearer(p.step("token to pull", "GET", "/service/token?service=harbor-registry&scope=repository:"+p.project+"/web:pull", nil, nil))
	p.step("that token pushes", "POST", "/v2/"+p.project+"/web/blobs/uploads/", puller, nil)
	p.step("that token asks /v2/", "GET", "/v2/", puller, nil)
	p.step("that token lists the catalog", "GET", "/v2/_catalog?n=1", puller, nil)
	p.step("nobody reads tags", "GET", "/v2/"+p.project+"/web/tags/list", nobody, nil)
	p.step("nobody pushes", "POST", "/v2/"+p.project+"/web/blobs/uploads/", nobody, nil)
	p.step("wrong password reads tags", "GET", "/v2/"+p.project+"/web/tags/list", wrong, nil)
	p.step("wrong password pushes", "POST", "/v2/"+p.project+"/web/blobs/uploads/", wrong, nil)
	p.step("wrong password lists the catalog", "GET", "/v2/_catalog", wrong, nil)
}

func (p *place) bearer(resp *http.Response) map[string]string {
	var token struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&token); err != nil {
		p.t.Fatal(err)
	}
	return map[string]string{"Authorization": "Bearer " + token.Token}
}

func (p *place) askProjects() {
	api := "/api/v2.0/projects"
	kind := map[string]string{"Content-Type": "application/json"}
	p.step("robot looks for a project", "HEAD", api+"?project_name="+p.project, nil, nil)
	p.step("robot looks for a missing project", "HEAD", api+"?project_name="+p.missing, nil, nil)
	p.step("nobody looks for a project", "HEAD", api+"?project_name="+p.project, nobody, nil)
	p.step("wrong password looks for a project", "HEAD", api+"?project_name="+p.project, wrong, nil)
	p.step("project that exists is made", "POST", api, kind, fmt.Appendf(nil, `{"project_name":%q}`, p.project))
	p.step("project with an upper case letter is made", "POST", api, kind, []byte(`{"project_name":"Upper"}`))
	p.step("nobody makes a project", "POST", api, map[string]string{"Authorization": "", "Content-Type": "application/json"}, []byte(`{"project_name":"theirs"}`))
	for _, m := range []string{"GET", "HEAD"} {
		p.step(m+" of tags in a missing project", m, "/v2/"+p.missing+"/web/tags/list", nil, nil)
		p.step(m+" of a manifest in a missing project", m, "/v2/"+p.missing+"/web/manifests/v1", nil, nil)
		p.step(m+" of a manifest in a missing repository", m, "/v2/"+p.project+"/web/manifests/v1", nil, nil)
		p.step(m+" of a blob in a missing repository", m, "/v2/"+p.project+"/web/blobs/"+digestOf(nil), nil, nil)
	}
	p.step("tags of a missing repository", "GET", "/v2/"+p.project+"/web/tags/list", nil, nil)
	p.step("push into a missing project", "POST", "/v2/"+p.missing+"/web/blobs/uploads/", nil, nil)
	p.step("push into no project", "POST", "/v2/flat/blobs/uploads/", nil, nil)
	p.step("referrers in a missing repository", "GET", "/v2/"+p.project+"/web/referrers/"+digestOf(nil), nil, nil)
	p.step("too large a page", "GET", "/api/v2.0/repositories?page_size=101", nil, nil)
}

// chunk is the header of a part of an upload.
var chunk = map[string]string{"Content-Type": "application/octet-stream"}

func (p *place) askUploads() {
	web := "/v2/" + p.project + "/web"
	uploads := web + "/blobs/uploads/"
	blob := []byte("abcdefgh")
	at := func(resp *http.Response) string { return resp.Header.Get("Location") }
	with := func(location, digest string) string { return location + "&digest=" + digest }

	begun := p.step("upload is begun", "POST", uploads, nil, nil)
	p.step("how far, of an empty one", "GET", at(begun), nil, nil)
	first := p.step("first part", "PATCH", at(begun), chunk, blob[:3])
	p.step("how far", "GET", at(first), nil, nil)
	p.step("how far, at the old location", "GET", at(begun), nil, nil)
	p.step("part at the old location", "PATCH", at(begun), chunk, blob[3:])
	p.step("closed with a wrong digest", "PUT", with(at(first), digestOf([]byte("x"))), chunk, nil)
	p.step("how far after that", "GET", at(first), nil, nil)
	p.step("closed", "PUT", with(at(first), digestOf(blob)), chunk, blob[3:])
	p.step("how far after the end", "GET", at(first), nil, nil)
	p.step("blob in one request", "POST", uploads+"?digest="+digestOf(blob), chunk, blob)
	begun = p.step("another upload is begun", "POST", uploads, nil, nil)
	p.step("given up", "DELETE", at(begun), nil, nil)
	p.step("how far after giving up", "GET", at(begun), nil, nil)
	p.step("part after giving up", "PATCH", at(begun), chunk, blob)

	p.step("blob", "GET", web+"/blobs/"+digestOf(blob), nil, nil)
	p.step("blob's head", "HEAD", web+"/blobs/"+digestOf(blob), nil, nil)
	p.step("blob's middle", "GET", web+"/blobs/"+digestOf(blob), map[string]string{"Range": "bytes=2-4"}, nil)
	p.step("blob's rest", "GET", web+"/blobs/"+digestOf(blob), map[string]string{"Range": "bytes=5-"}, nil)
	p.step("behind the blob", "GET", web+"/blobs/"+digestOf(blob), map[string]string{"Range": "bytes=99-"}, nil)
	p.step("blob in another repository", "HEAD", "/v2/"+p.project+"/other/blobs/"+digestOf(blob), nil, nil)
	p.step("mount", "POST", "/v2/"+p.project+"/other/blobs/uploads/?mount="+digestOf(blob)+"&from="+p.project+"/web", nil, nil)
	p.step("mount of what is not there", "POST", "/v2/"+p.project+"/other/blobs/uploads/?mount="+digestOf([]byte("x"))+"&from="+p.project+"/web", nil, nil)
	p.step("mount from a missing repository", "POST", "/v2/"+p.project+"/other/blobs/uploads/?mount="+digestOf(blob)+"&from="+p.project+"/none", nil, nil)
	p.step("mount from a missing project", "POST", "/v2/"+p.project+"/other/blobs/uploads/?mount="+digestOf(blob)+"&from="+p.missing+"/web", nil, nil)
}

const ociManifest = "application/vnd.oci.image.manifest.v1+json"

// manifest of a config alone; more goes into it.
func manifest(config []byte, more string) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,%s"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`,
		ociManifest, more, digestOf(config), len(config))
}

func (p *place) put(what, repo, reference string, content []byte) {
	p.t.Helper()
	p.step(what, "PUT", "/v2/"+p.project+"/"+repo+"/manifests/"+reference, map[string]string{"Content-Type": ociManifest}, content)
}

// upload brings a blob into a repository without telling of it.
func (p *place) upload(repo string, blob []byte) *http.Response {
	p.t.Helper()
	begun := p.send("POST", "/v2/"+p.project+"/"+repo+"/blobs/uploads/", nil, nil)
	return p.send("PUT", begun.Header.Get("Location")+"&digest="+digestOf(blob), chunk, blob)
}

func (p *place) askManifests() {
	web := "/v2/" + p.project + "/web"
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	m := manifest(config, "")
	p.put("manifest over a missing blob", "web", "v1", m)
	p.upload("web", config)
	p.put("manifest under a tag", "web", "v1", m)
	p.put("the same again", "web", "v1", m)
	p.put("manifest under a wrong digest", "web", digestOf(config), m)
	p.put("not JSON", "web", "v1", []byte("{"))
	sbom := manifest(config, fmt.Sprintf(`"artifactType":"application/vnd.example.sbom","subject":{"mediaType":%q,"digest":%q,"size":%d},"annotations":{"a":"b"},`, ociManifest, digestOf(m), len(m)))
	p.put("referrer by digest", "web", digestOf(sbom), sbom)
	p.step("referrers", "GET", web+"/referrers/"+digestOf(m), nil, nil)
	p.step("referrers of a kind", "GET", web+"/referrers/"+digestOf(m)+"?artifactType=application/vnd.example.none", nil, nil)
	p.step("referrers of what is not there", "GET", web+"/referrers/"+digestOf(nil), nil, nil)
	accept := map[string]string{"Accept": ociManifest}
	p.step("manifest's head by tag", "HEAD", web+"/manifests/v1", accept, nil)
	p.step("manifest by digest", "GET", web+"/manifests/"+digestOf(m), accept, nil)
	p.step("manifest under a missing tag", "GET", web+"/manifests/none", accept, nil)
	p.step("manifest under a missing digest", "GET", web+"/manifests/"+digestOf(nil), accept, nil)
	p.put("second tag", "web", "v2", m)
	p.step("tags", "GET", web+"/tags/list", nil, nil)
	p.step("tags by pages", "GET", web+"/tags/list?n=1", nil, nil)
	p.step("tags, the next page", "GET", web+"/tags/list?n=1&last=v1", nil, nil)
	p.step("tag is deleted as a manifest", "DELETE", web+"/manifests/v1", nil, nil)
	tag := func(t string) string {
		return "/api/v2.0/projects/" + p.project + "/repositories/web/artifacts/" + t + "/tags/" + t
	}
	p.step("tag is deleted", "DELETE", tag("v1"), nil, nil)
	p.step("and again", "DELETE", tag("v1"), nil, nil)
	p.step("the last tag is deleted", "DELETE", tag("v2"), nil, nil)
	p.step("tags when there are none", "GET", web+"/tags/list", nil, nil)
	p.step("tag is deleted in a missing repository", "DELETE", strings.Replace(tag("v1"), "/web/", "/none/", 1), nil, nil)
	p.step("tag is deleted in a missing project", "DELETE", strings.Replace(tag("v1"), p.project, p.missing, 1), nil, nil)
}

func (p *place) askRules() {
	config := []byte(`{"architecture":"arm64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	m, other := manifest(config, ""), manifest(config, `"annotations":{"a":"b"},`)
	p.upload("ruled/app", config)
	p.put("manifest before the rule", "ruled/app", "fixed", m)
	p.immutable("fixed")
	p.put("the same under an immutable tag", "ruled/app", "fixed", m)
	p.put("another under an immutable tag", "ruled/app", "fixed", other)
	p.put("the same by digest", "ruled/app", digestOf(m), m)
	p.put("another tag", "ruled/app", "loose", other)
	p.step("immutable tag is deleted", "DELETE", "/api/v2.0/projects/"+p.project+"/repositories/ruled%252Fapp/artifacts/fixed/tags/fixed", nil, nil)
	p.immutable("")

	p.quota(2048)
	blob := make([]byte, 3<<20)
	p.tell("blob over the quota", p.upload("web", blob))
	p.quota(-1)
	begun := p.send("POST", "/v2/"+p.project+"/web/blobs/uploads/", nil, nil)
	_, _ = io.Copy(io.Discard, p.send("PUT", begun.Header.Get("Location")+"&digest="+digestOf(blob), chunk, blob).Body)
	p.quota(2048)
	p.step("mount over the quota", "POST", "/v2/"+p.project+"/fresh/blobs/uploads/?mount="+digestOf(blob)+"&from="+p.project+"/web", nil, nil)
	p.quota(-1)

	p.step("upload into a proxy cache", "POST", "/v2/"+p.proxy+"/app/blobs/uploads/", nil, nil)
	p.step("manifest into a proxy cache", "PUT", "/v2/"+p.proxy+"/app/manifests/v1", map[string]string{"Content-Type": ociManifest}, m)

	p.readOnly(true)
	p.step("upload in read-only mode", "POST", "/v2/"+p.project+"/web/blobs/uploads/", nil, nil)
	p.put("manifest in read-only mode", "ruled/app", "loose", m)
	p.step("tag is deleted in read-only mode", "DELETE", "/api/v2.0/projects/"+p.project+"/repositories/ruled%252Fapp/artifacts/loose/tags/loose", nil, nil)
	p.step("project is made in read-only mode", "POST", "/api/v2.0/projects", map[string]string{"Content-Type": "application/json"}, fmt.Appendf(nil, `{"project_name":%q}`, p.missing))
	p.step("read in read-only mode", "GET", "/v2/"+p.project+"/ruled/app/tags/list", nil, nil)
	p.readOnly(false)
}
