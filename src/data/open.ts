/** Labelled pictures at a path, whatever their form: what every command that takes a data set calls. */

import { type Dataset, imageFolder, type ImageFolderOptions } from './folder.js'
import { findLabelList, multiLabelFolder } from './multiLabel.js'

/**
 * Opens class folders, lists of pictures with several labels (see multiLabel.ts), WebDataset shards or a prepared cache.
 * @throws whatever the form found there throws: ERR_DATA, ERR_FILE, ERR_FORMAT.
 */
export async function openDataset(path: string, options: ImageFolderOptions = {}): Promise<Dataset> {
  if (findLabelList(path) !== undefined) return multiLabelFolder(path, options)
  return imageFolder(path, options)
}
