// Package archtest holds no code, only tests: they load the import graph of the module and fail, with the reason, when it
// breaks the layout that docs describe. The rules are in rules_test.go, how they are judged in check_test.go.
package archtest
