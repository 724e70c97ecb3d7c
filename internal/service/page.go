package service

import (
	"encoding/base64"
	"fmt"
	"strings"
)

const (
	defaultPageSize = 100
	maxPageSize     = 1000
)

// pageSize checks and defaults a page size (AIP-158).
func pageSize(size int32) (int, error) {
	switch {
	case size < 0:
		return 0, invalid("page_size", "INVALID_PAGE_SIZE", fmt.Sprintf("%d is negative; leave it out, or ask for 1 to %d", size, maxPageSize))
	case size == 0:
		return defaultPageSize, nil
	}
	return min(int(size), maxPageSize), nil
}

// A page token is the place where the page ended, together with the request it
// belongs to, so that it cannot be used with another.

func pageToken(request, place string) string {
	return base64.RawURLEncoding.EncodeToString([]byte("1\x00" + request + "\x00" + place))
}

// pagePlace is the inverse of pageToken; the empty token is the empty place.
func pagePlace(token, request string) (string, error) {
	if token == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	place, ok := strings.CutPrefix(string(raw), "1\x00"+request+"\x00")
	if err != nil || !ok || place == "" {
		return "", badPageToken()
	}
	return place, nil
}

func badPageToken() error {
	return invalid("page_token", "INVALID_PAGE_TOKEN", "it is not the next_page_token of a request like this one; begin again without it")
}
